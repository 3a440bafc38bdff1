"""`irv2 doctor` on machines that are well, and on such as have one fault or several."""

import os
import py_compile
import re
import resource
import subprocess
from collections.abc import Iterable
from pathlib import Path

import broken_machine
import pytest
from broken_machine import Machine, rewrite_evidence
from project import ROOT
from tiny_bundle import passed_parity

from irv2.bundle import Bundle
from irv2.manifest import Evidence
from irv2.runners.choose import open_best
from irv2.system.machine import instruction_set, num_cores

PAGE = (ROOT / "docs" / "doctor.md").read_text()
# Runs, by the faults that a machine has at the same time; each costs seconds.
RUNS = {
    "many": (
        "read_only_cache port_in_use modules_in_working_folder no_compiled_kernel old_driver "
        "old_protobuf changed_bundle"
    ),
    "numpy": "numpy_on_the_path full_disk",
    "both": "both_onnxruntimes",
    "damaged": "damaged_onnxruntime",
    "processor": "bundle_of_another_processor",
}
# How each fault is told: level, subject, what is found, the way out.
TOLD = {
    "read_only_cache": ("problem", "cache", "can't be written", "XDG_CACHE_HOME"),
    "port_in_use": ("problem", "port", "address already in use", "another --listen"),
    "modules_in_working_folder": ("note", "working folder", "numpy.py, train.py in ", "rename"),
    "no_compiled_kernel": ("note", "kernel", "computed by NumPy", "install a C compiler"),
    "old_driver": (
        "problem",
        "GPU",
        "driver for CUDA 12.2 is too old for nvidia-cuda-runtime 13.0.96",
        "install a driver for CUDA 13",
    ),
    "old_protobuf": (
        "problem",
        "packages",
        "protobuf 5.29.5; expected >=6.31.1,<8",
        'pip install "protobuf>=6.31.1,<8"',
    ),
    "changed_bundle": (
        "problem",
        "bundle",
        "tiny.bundle/model.onnx: sha256 ",
        "export it again",
    ),
    "numpy_on_the_path": (
        "problem",
        "libraries",
        "site-packages/numpy.py, not from ",
        "take its folder off PYTHONPATH",
    ),
    "full_disk": ("problem", "cache", ": no room", "XDG_CACHE_HOME"),
    "both_onnxruntimes": (
        "problem",
        "backend onnxruntime-cpu",
        "both onnxruntime and onnxruntime-gpu are installed",
        "pip uninstall both",
    ),
    "damaged_onnxruntime": (
        "problem",
        "backend onnxruntime-cpu",
        "it ended its process with SIGBUS, as with a file that was cut off",
        "pip install --force-reinstall onnxruntime",
    ),
    "bundle_of_another_processor": (
        "problem",
        "served",
        "nothing in it can be served here",
        "irv2 verify ",
    ),
}


def lines_of(report: dict, level: str, subject: str) -> list[tuple[str, str]]:
    return [
        (each["found"], each["way_out"])
        for each in report["findings"]
        if (each["level"], each["subject"]) == (level, subject)
    ]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A function that returns the report of a run, made once."""
    made = {}

    def report(run: str) -> dict:
        if run not in made:
            machine = Machine(tmp_path_factory.mktemp(run) / "machine")
            with machine.open:
                for fault in RUNS.get(run, "").split():
                    getattr(broken_machine, fault)(machine)
                if machine.mounts and not can_mount():
                    pytest.skip("nothing can be mounted here")
                machine.write_requirements()
                made[run] = machine.doctor()
        return made[run]

    return report


def can_mount() -> bool:
    try:
        return subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("run", RUNS)
def test_every_fault_is_told_with_its_cause_and_a_way_out(reports, run):
    report = reports(run)
    for fault in RUNS[run].split():
        level, subject, found, way_out = TOLD[fault]
        lines = lines_of(report, level, subject)
        assert any(found in line and way_out in out for line, out in lines), (fault, lines)
        if fault != "numpy_on_the_path":  # a machine without that fault says nothing of the kind
            assert not any(found in line for line, _ in lines_of(reports("well"), level, subject))
    assert report["exit_code"] == 1
    assert report["problems"] == sum(each["level"] == "problem" for each in report["findings"])
    assert all(each["way_out"] for each in report["findings"] if each["level"] == "problem")


def test_what_only_follows_from_another_fault_points_to_it(reports):
    for subject in ("kernel", "backend onnxruntime-cpu", "backends"):
        [(_, way_out)] = lines_of(reports("numpy"), "problem", subject)
        assert way_out == "mend the libraries above first"


def test_a_damaged_engine_leaves_the_others(reports):
    assert lines_of(reports("damaged"), "ok", "backend openvino-cpu")


def test_generated_code_says_so_where_protobuf_is_too_old_for_it(reports):
    [(found, _)] = [
        line for line in lines_of(reports("many"), "problem", "libraries") if "irv2.v1" in line[0]
    ]
    assert "runtime 5." in found


def test_a_well_machine_serves_what_was_fastest(reports):
    report = reports("well")
    assert (report["exit_code"], report["problems"]) == (0, 0)
    for name in ("onnxruntime-cpu", "openvino-cpu"):
        [(found, _)] = lines_of(report, "ok", f"backend {name}")
        assert "gives the right answers" in found
    assert lines_of(report, "ok", "served")


def test_nothing_is_written_whatever_is_installed(tmp_path):
    """No file may grow (RLIMIT_FSIZE), and none is made, removed or touched."""
    machine = Machine(tmp_path / "machine", packages=())
    evidence = [
        Evidence(
            backend=backend,
            instruction_set=instruction_set(backend),
            threads=2,
            parity=passed_parity(),
            invariance=None,
            images_per_s=rate,
        )
        for backend, rate in (("onnxruntime-cpu", 1000.0), ("openvino-cpu", 2000.0))
    ]
    rewrite_evidence(machine.bundle, evidence)
    broken_machine.no_compiled_kernel(machine)  # a copy of irv2 without bytecode
    for name in ("__init__.py", "__main__.py"):  # Python's own doing, before ours begins
        py_compile.compile(str(machine.programs / "irv2" / name))
    machine.write_requirements()
    before = state_of(machine.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        report = machine.doctor()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state_of(machine.folder) == before
    assert report["exit_code"] == 0, report
    here = "" if num_cores() == 2 else f"; here it gets {num_cores()}"
    [(found, _)] = lines_of(report, "ok", "served")
    fast = f"2000 images/s on record, with 2 threads{here}"
    assert found == f"model.onnx (openvino-cpu) would be: {fast}"
    [(found, _)] = lines_of(report, "ok", "not served")
    assert found.startswith("model.onnx (onnxruntime-cpu): comes after it, 1000 images/s")
    assert lines_of(report, "ok", "backend torch")
    [(found, _)] = lines_of(report, "ok", "libraries")
    assert found.startswith("all ")
    assert int(found.split()[1]) > 25
    assert transcript_subjects() == subjects(each["subject"] for each in report["findings"])
    best = open_best(machine.bundle, Bundle.open(machine.bundle).artifacts)
    with best.runner:
        assert (best.artifact.file, best.runner.backend) == ("model.onnx", "openvino-cpu")


def transcript_subjects() -> list[str]:
    """Of the lines that docs/doctor.md shows."""
    return subjects(re.findall(r"^(?:ok|note|problem) +(\S+(?: \S+)*)", PAGE, re.MULTILINE))


def subjects(names: Iterable[str]) -> list[str]:
    """Each once, in order; of the extras the page shows some."""
    return list(dict.fromkeys(name for name in names if not name.startswith("extra")))


def test_the_page_explains_every_fault():
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \| \w", PAGE, re.MULTILINE)
    told = {(subject, found) for _, subject, found, _ in TOLD.values()}
    assert told <= set(rows)
    assert {subject for subject, _ in set(rows) - told} == {"cores", "memory"}  # test_machine.py


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Each file and folder with its size and the time of its last change."""
    paths = [folder, *folder.rglob("*")]
    found = {path: os.lstat(path) for path in paths}
    return {path: (each.st_size, each.st_mtime_ns) for path, each in found.items()}
