"""Benchmarks in a report."""

import json

import pytest

from irv2.errors import InputError
from irv2.report.measured import measured_chapter, read_benchmark

SERVE = {
    "machine": {"cores": 2, "processor": "A&B"},
    "cases": {"irv2 1": {"requests_per_s": 26.0, "num_wrong": 0}, "irv2 4": {"p50_ms": 42.97}},
    "bare_loop_images_per_s": 57.7,
    "void": False,
}


def test_cases_become_rows(tmp_path):
    (tmp_path / "serve.json").write_text(json.dumps(SERVE))
    found = measured_chapter({"serve.json": read_benchmark(tmp_path / "serve.json")}, "measured")
    cases = found.find("section/div/table")
    assert [th.text for th in cases.iter("th")] == [
        *("case", "requests per s", "num wrong", "p50 ms", "irv2 1", "irv2 4"),
    ]
    assert [td.text for td in cases.iter("td")] == ["26", "0", "-", "-", "-", "42.97"]
    text = "\n".join(found.itertext())
    assert "Server (serve.json)" in text
    assert "machine processor\nA&B" in text
    assert "not measured" not in text
    assert "Void" not in text


def test_a_void_measurement_is_called_void_and_a_server_that_was_not_measured_is_missed():
    found = measured_chapter({"e.json": {"machine": {}, "gflop_per_image": 1, "void": True}}, "m")
    text = "\n".join(found.itertext())
    assert "Engines (e.json)" in text
    assert "Void: " in text
    assert "Server: not measured" in text


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"machine": 1}', b"\xff"])
def test_what_is_no_benchmark_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x.json: .*expected the output of irv2 bench"):
        read_benchmark(tmp_path / "x.json")
