"""A server under a quota of processor time, as in a container with limited CPUs."""

import os
import re
from pathlib import Path

import pytest
from cgroups import limited_time, within
from serving_process import Process, serving
from tiny_bundle import write_tiny_bundle

NUM_CORES = len(os.sched_getaffinity(0))


@pytest.mark.skipif(NUM_CORES == 1, reason="a single core is the least with and without a quota")
def test_a_server_starts_as_many_threads_as_its_quota_allows(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    with serving(bundle, "--threads", "1", "--workers", "1") as told:
        expected = num_threads(told)
    try:
        with limited_time(0.8) as group, serving(bundle, prefix=within(group)) as limited:
            assert ready_threads(limited) == (1, 1)
            assert num_threads(limited) == expected
        with (
            limited_time(0.8) as group,
            serving(bundle, "--threads", "3", "--workers", "2", prefix=within(group)) as told,
        ):
            assert ready_threads(told) == (3, 2)
            assert num_threads(told) == expected + 3
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")


def test_without_a_quota_it_starts_one_of_each_per_core(tmp_path):
    with serving(write_tiny_bundle(tmp_path / "tiny.bundle")) as process:
        assert ready_threads(process) == (NUM_CORES, NUM_CORES)


def ready_threads(process: Process) -> tuple[int, int]:
    found = re.search(r" threads=(\d+) workers=(\d+)", process.ready_line)
    return int(found[1]), int(found[2])


def num_threads(process: Process) -> int:
    """All but gRPC's, whose number varies; those have names of their own."""
    tasks = list(Path(f"/proc/{process.popen.pid}/task").iterdir())
    own = Path(f"/proc/{process.popen.pid}/comm").read_text()
    return sum((task / "comm").read_text() == own for task in tasks)
