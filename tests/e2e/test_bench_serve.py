"""The server's benchmarks measure real processes, and would notice a wrong answer."""

import json
import subprocess
import sys

import pytest

from irv2.serve.bench.clients import Call, GrpcTarget, num_wrong
from irv2.serve.bench.site import served
from irv2.v1.classifier_pb2 import ClassifyResponse, Result, Score


def bench(*arguments: str) -> dict:
    command = [sys.executable, "-m", "irv2", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_bench_serve_compares_the_server_with_the_bare_loop_and_a_naive_server():
    result = bench(
        "serve",
        "--seconds",
        "0.2",
        "--settle-s",
        "0.1",
        "--rounds",
        "1",
        "--resampling",
        "opencv-cubic",
        "--server-options",
        "--front-ends 2",
    )
    assert {"irv2 1", "irv2 4", "irv2 16", "naive 1", "naive 16"} <= result["cases"].keys()
    assert {"--front-ends 2 1", "--front-ends 2 16"} <= result["cases"].keys()
    for case in result["cases"].values():
        assert case["num_wrong"] == 0
        assert case["num_answers"] > 0
        assert 0 < case["p50_ms"] <= case["p99_ms"]
    assert result["bundle"]["distinct_answers"] > 32, "or a swapped answer could look right"
    assert result["bare_loop_images_per_s"] > 0
    assert result["ratios"]["irv2 16 / bare loop"]["ratio"] > 0
    assert result["ratios"]["irv2 1 / --front-ends 2 1"]["ratio"] > 0
    one, two = (result["processes"][name] for name in ("irv2", "--front-ends 2"))
    assert 10 < one["idle_mb"] < two["idle_mb"], "two front ends are two processes more"


@pytest.mark.parametrize("program", ["serve", "load"])
def test_options_of_the_server_that_cannot_be_read_are_refused_in_one_line(program):
    command = [sys.executable, "-m", "irv2", "bench", program, "--server-options", "--listen '"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert "--server-options --listen ': " in line
    assert "closed quotes" in line


@pytest.mark.timeout(60)
def test_a_server_that_logs_much_is_not_held_up():
    program = (
        "import sys; print('ready 127.0.0.1:1', file=sys.stderr); "
        "print('log line\\n' * 100_000, file=sys.stderr); [print(line) for line in sys.stdin]"
    )
    with served([sys.executable, "-uc", program]) as process:
        assert process.ask("are you there?") == "are you there?\n"


def test_a_wrong_or_missing_class_counts_as_wrong():
    answers = [Result(scores=[Score(index=3)]), Result(scores=[Score(index=4)]), Result()]
    calls = [
        Call(0, 0.0, 0.0, 1.0, "ok", ClassifyResponse(results=[answer]).SerializeToString())
        for answer in answers
    ]
    refused = Call(0, 0.0, 0.0, 1.0, "RESOURCE_EXHAUSTED")
    assert num_wrong([*calls, refused], GrpcTarget.top1, expected=[3]) == 2


@pytest.mark.slow
def test_bench_load_offers_too_much_and_counts_what_became_of_every_request():
    result = bench(
        "load",
        "--seconds",
        "1",
        "--factor",
        "0.3",
        "--factor",
        "8",
        "--deadline-ms",
        "300",
        "--resampling",
        "opencv-cubic",
        "--server-options",
        "--log-requests",
    )
    assert result["distinct_answers"] > 32, "or a swapped answer could look right"
    first, second, third = result["capacities_per_s"]
    within, beyond = result["loads"]
    assert within["capacity_per_s"] == pytest.approx((first + second) / 2, abs=0.1)
    assert beyond["capacity_per_s"] == pytest.approx((second + third) / 2, abs=0.1)
    of_capacity = beyond["goodput_per_s"] / beyond["capacity_per_s"]
    assert beyond["goodput_of_capacity"] == pytest.approx(of_capacity, abs=0.01)
    for load in (within, beyond):
        ends = ("num_answered", "num_refused", "num_expired", "num_shed", "num_failed")
        assert sum(load[end] for end in ends) == load["num_sent"]
        assert (load["num_failed"], load["num_wrong"]) == (0, 0)
        assert load["rss_mb"]["max"] > 10
    assert within["answer_ms"]["p99"] > within["answer_ms"]["p50"] > 0
    assert beyond["num_refused"] + beyond["num_expired"] > 0
    assert (beyond["refusal_p99_ms_in_server"] is None) == (beyond["num_refused"] == 0)
