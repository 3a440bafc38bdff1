"""The limit of a cgroup is found under either version, and who was killed at it is told."""

import subprocess
import sys
from pathlib import Path

import pytest
from cgroups import NoGroup, memory_group

from irv2.system.cgroup import memory_limit, num_killed, why_killed


def machine(root: Path, groups: str, **files: str) -> Path:
    """A machine's /proc and /sys: `__` in a file's name is a slash, and a dot follows `memory_`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("memory_", "memory.", 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_the_lowest_limit_around_a_group_of_version_2_counts(tmp_path):
    root = machine(
        tmp_path,
        "0::/slice/job\n",
        slice__memory_max="104857600\n",
        slice__job__memory_max="max\n",
        slice__job__memory_events="low 0\noom 2\noom_kill 1\noom_group_kill 0\n",
    )
    limit = f"100 MiB ({root}/sys/fs/cgroup/slice/memory.max)"
    assert memory_limit(root) == limit
    assert num_killed(root) == 1
    assert why_killed(1, root) is None
    assert why_killed(0, root) == f"by the kernel, at the memory limit of its cgroup, {limit}"


@pytest.mark.parametrize("seen", ["job__", ""])  # in a container the group may be the outermost
def test_version_1_has_a_tree_for_memory(tmp_path, seen):
    lines = "9:cpu:/elsewhere\n4:memory:/job\n0::/\n"
    root = machine(tmp_path, lines)
    folder = root / "sys/fs/cgroup/memory" / seen.replace("__", "/")
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("209715200\n")
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert memory_limit(root) == f"200 MiB ({folder / 'memory.limit_in_bytes'})"
    assert num_killed(root) == 3
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(root) is None
    assert why_killed(2, root) == "by the kernel, since this machine had no memory left"


@pytest.mark.parametrize("groups", ["", "1:cpu:/\n", "0::/\n"])
def test_a_machine_without_limits_has_none(tmp_path, groups):
    root = machine(tmp_path / "there", groups)
    for each in (root, tmp_path / "nothing"):
        assert (memory_limit(each), num_killed(each), why_killed(0, each)) == (None, 0, None)


PROGRAM = """
from irv2.system.cgroup import num_killed, why_killed
import subprocess, sys
before = num_killed()
hog = subprocess.run([sys.executable, "-c", "bytearray(10**9)"])
print(hog.returncode, why_killed(before))
"""


def test_a_real_group_tells_who_was_killed():
    try:
        with memory_group(64) as group:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM],
                capture_output=True,
                text=True,
                check=True,
                preexec_fn=group.enter,
            )
            expected = f"by the kernel, at the memory limit of its cgroup, 64 MiB ({group.limit})"
    except NoGroup as error:
        pytest.skip(str(error))
    assert done.stdout == f"-9 {expected}\n"
