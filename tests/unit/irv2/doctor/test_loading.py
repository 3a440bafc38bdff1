"""What is said of GPUs, backends and bundles, by what was found of them."""

from pathlib import Path

import pytest

from irv2.doctor import loading
from irv2.doctor.bundle import check_bundle
from irv2.doctor.finding import Report, note, ok, problem
from irv2.doctor.loading import check_backends, check_gpus, check_kernel
from irv2.runners.choose import Rejection

WELL, LATE = {"version": "1.32.0"}, {"error": "no answer within 4 s", "is_late": True}


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ({}, "note", "no NVIDIA driver"),
        ({"error": "libcuda.so.1: invalid ELF header"}, "problem", "invalid ELF header"),
        ({"cuda": [12, 9], "gpus": []}, "problem", "CUDA 12.9 is too old for cuda-bindings 13.4"),
        ({"cuda": [13, 0], "gpus": [], "error": "no device"}, "problem", "no device"),
        ({"cuda": [13, 1], "gpus": ["H200, 139 GiB"]}, "ok", "H200, 139 GiB; driver for CUDA 13.1"),
        (LATE, "note", "no answer"),
    ],
)
def test_a_driver_is_compared_with_the_libraries(monkeypatch, answer, level, words):
    installed = {"cuda-bindings": "13.4.4"}
    monkeypatch.setattr(loading, "version_of", lambda name: installed.get(name, ""))
    found = check_gpus({"name": "NVIDIA", **answer})
    assert found.level == level
    assert words in found.found


@pytest.mark.parametrize(
    ("answers", "levels"),
    [
        ({"onnxruntime-cpu": WELL}, ["ok"]),
        ({"onnxruntime-cpu": LATE, "openvino-cpu": WELL}, ["note", "ok"]),
        ({"onnxruntime-cpu": LATE}, ["note", "problem"]),
        ({"onnxruntime-cpu": {"error": "off by 9"}, "openvino-cpu": WELL}, ["problem", "ok"]),
        ({"tensorrt": WELL | {"lacks_gpu": True}, "torch": WELL}, ["note", "ok", "problem"]),
        ({}, ["problem"]),
    ],
)
def test_one_backend_that_serves_is_needed(answers, levels):
    assert [each.level for each in check_backends(answers)] == levels


def test_a_kernel_that_can_not_be_loaded_is_a_problem_and_a_missing_one_is_not():
    assert check_kernel({"kernel": "compiled"}).level == "ok"
    assert check_kernel({"kernel": "NumPy"}).level == "note"
    assert check_kernel({"error": "OSError: file too short"}).level == "problem"
    assert check_kernel(LATE).level == "note"


def candidate(file: str, backend: str, rate: float | None) -> dict:
    return {"file": file, "backend": backend, "images_per_s": rate, "threads": 0}


def rejected(file: str, backend: str, reason: str, *, is_unjudged: bool = False) -> dict:
    found = Rejection(file, backend, reason, is_unjudged)
    return {"what": found.what, **found._asdict()}


def test_what_would_be_faster_is_told_with_the_reason_against_it():
    answer = {
        "id": "0" * 64,
        "wrong": [],
        "candidates": [
            candidate("a.plan", "tensorrt", 900.0),
            candidate("b.onnx", "openvino-cpu", 60.0),
            candidate("c.onnx", "onnxruntime-cpu", 40.0),
            candidate("d.onnx", "onnxruntime-cpu", None),
        ],
        "rejected": [
            rejected("e.onnx", "onnxruntime-cpu", "not verified", is_unjudged=True),
            rejected("f.onnx", "onnxruntime-cpu", "parity failed"),
            rejected("g.plan", "tensorrt", "not verified", is_unjudged=True),
        ],
    }
    backends = {"onnxruntime-cpu": WELL, "tensorrt": {"error": "no library"}}
    found = list(check_bundle(Path("best.bundle"), answer, backends))
    assert [each.level for each in found] == ["ok", "ok", *["note"] * 5, "ok"]
    texts = [f"{each.found}; {each.way_out}" for each in found]
    assert "c.onnx (onnxruntime-cpu) would be: 40 images/s on record" in texts[1]
    assert "900 images/s on record: tensorrt does not run here, see above" in texts[2]
    assert 'openvino-cpu not installed; pip install "irv2[openvino]"' in texts[3]
    assert "not verified; run `irv2 verify best.bundle` on this machine" in texts[4]
    assert texts[5].endswith("parity failed; ")
    assert texts[6].endswith("not verified, and its backend does not run here; ")
    [_, nothing, *_] = check_bundle(Path("best.bundle"), answer, {})
    assert nothing.level == "problem"


def test_a_folder_that_is_no_bundle_is_told_with_its_own_way_out():
    answer = {"error": "x: no bundle.json in it", "way_out": "make one with irv2-export"}
    [found] = check_bundle(Path("x"), answer, {})
    assert found == problem("bundle", "x: no bundle.json in it", "make one with irv2-export")


def test_only_a_problem_makes_a_report_fail():
    lines = [ok("a", "b"), note("long name", "several\nlines", "way out")]
    assert Report(lines).exit_code == 0
    assert Report([*lines, problem("c", "d", "e")]).exit_code == 1
    assert Report(lines).to_text() == (
        "ok       a          b\nnote     long name  several lines; way out"
    )
