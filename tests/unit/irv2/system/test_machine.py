"""How many cores this process may use, with written quotas and in a real control group."""

import os
import re
import subprocess
import sys

import pytest
from cgroups import group_in, limited_time, within
from project import ROOT

from irv2.system import machine


@pytest.fixture
def given(monkeypatch):
    """A function that sets the number of cores and the quota."""
    monkeypatch.setattr(machine, "find_gpu", lambda: "no GPU")

    def give(num_allowed: int, quota: float | None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_allowed)))
        monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
        machine.describe_machine.cache_clear()

    yield give
    machine.describe_machine.cache_clear()


@pytest.mark.parametrize(
    ("num_allowed", "quota", "num_cores", "words"),
    [
        (64, None, 64, ", 64 cores,"),
        (64, 2.0, 2, ", 2 of 64 cores (quota 2),"),
        (64, 0.5, 1, ", 1 of 64 cores (quota 0.5),"),
        (64, 0.01, 1, ", 1 of 64 cores (quota 0.01),"),
        (64, 2.5, 3, ", 3 of 64 cores (quota 2.5),"),
        (2, 1.5, 2, ", 2 of 2 cores (quota 1.5),"),
        (2, 8.0, 2, ", 2 cores,"),
    ],
)
def test_affinity_and_quota_limit_the_cores_and_the_quota_is_said(
    given, num_allowed, quota, num_cores, words
):
    given(num_allowed, quota)
    assert machine.num_cores() == num_cores
    assert words in machine.describe_machine()


PACKAGES = ("irv2", "train", "convert", "serve")
SETTINGS = ("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "TORCHINDUCTOR_COMPILE_THREADS")
UNDER_A_QUOTA = """
import os
import irv2.system.cgroups as cgroups
cgroups.cpu_quota = lambda: 0.5
import irv2.cli.program
"""


def test_libraries_of_programs_take_as_many_threads_as_the_quota_allows():
    script = (
        UNDER_A_QUOTA + "import cv2, torch; print(torch.get_num_threads(), cv2.getNumThreads())"
    )
    assert output_of(script, **without_settings()) == "1 1\n"


def test_settings_of_the_users_stay():
    script = UNDER_A_QUOTA + f"print([os.environ[name] for name in {SETTINGS}])"
    assert output_of(script, **without_settings()) == "['1', '1', '1']\n"
    assert (
        output_of(script, **without_settings(), **dict.fromkeys(SETTINGS, "3"))
        == "['3', '3', '3']\n"
    )


def test_a_real_group_limits_the_cores_and_so_does_one_around_it():
    script = "from irv2.system.machine import describe_machine; print(describe_machine())"
    try:
        with limited_time(0.5) as group, group_in(group) as inner:
            described = output_of(script, *within(inner), **os.environ)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert f", 1 of {len(os.sched_getaffinity(0))} cores (quota 0.5), " in described


def test_no_module_leaves_the_number_of_threads_to_a_library():
    for path in (path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        assert not re.search(r"cpu_count|PoolExecutor\(\)|inter_op", text), path
        assert text.count("InferenceSession(") == text.count("intra_op_num_threads ="), path
        assert "sched_getaffinity" not in text or path.name == "machine.py", path


def output_of(script: str, *prefix: str, **environment: str) -> str:
    """What Python prints, started behind `prefix`."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", script],
        env={**environment, "PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in SETTINGS}
