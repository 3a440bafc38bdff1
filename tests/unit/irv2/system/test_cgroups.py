"""Quotas of processor time and limits of memory, from files as the kernel writes them."""

import logging
import os
import subprocess
import sys

import pytest
from cgroups import MEMORY_LIMIT, V2, Written, limited_memory, within

from irv2.system.cgroups import memory_limit, num_killed, why_killed

V1 = "cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "cgroup cgroup rw,memory"


@pytest.fixture
def v2(tmp_path):
    """A container of version 2 as most see themselves: in the root of what is mounted."""
    return Written(tmp_path, "0::/\n", ("/", "cg", V2))


@pytest.fixture
def nested_v2(tmp_path):
    return Written(tmp_path, "0::/pods/pod7/box\n", ("/", "cg", V2))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("200000 100000\n", 2.0),
        ("50000 100000\n", 0.5),
        ("250000 100000\n", 2.5),
        ("25000 10000\n", 2.5),
        ("max 100000\n", None),
    ],
)
def test_version_2(v2, content, expected):
    v2.write("cg/cpu.max", content)
    assert v2.quota == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("-1\n", None), ("150000\n", 1.5), ("50000\n", 0.5)]
)
def test_version_1_with_other_controllers_in_other_groups(tmp_path, quota, expected):
    written = Written(
        tmp_path,
        "12:cpuset:/sets\n4:memory:/m\n3:cpu,cpuacct:/box\n1:name=systemd:/s\n0::/\n",
        ("/", "cpuset", "cgroup cgroup rw,cpuset"),
        ("/", "memory", V1_MEMORY),
        ("/", "cpu,cpuacct", V1),
        ("/", "unified", V2),
    )
    written.write_v1("cpu,cpuacct/box", quota)
    written.write_v1("cpuset/sets", "1000\n")
    written.write_v1("cpuset/box", "1000\n")
    assert written.quota == expected


def test_a_docker_container_of_version_1_sees_its_group_as_the_mount(tmp_path):
    written = Written(tmp_path, "3:cpuacct,cpu:/docker/ab12\n", ("/docker/ab12", "cpu", V1))
    written.write_v1("cpu", "300000\n")
    assert written.quota == 3.0


@pytest.mark.parametrize("place", ["cg", "cg/pods", "cg/pods/pod7", "cg/pods/pod7/box"])
def test_every_group_around_counts(nested_v2, place):
    for group in ("cg/pods", "cg/pods/pod7", "cg/pods/pod7/box"):
        nested_v2.write(f"{group}/cpu.max", "max 100000\n")
    nested_v2.write("cg/pods/other/cpu.max", "1000 100000\n")
    nested_v2.write(f"{place}/cpu.max", "150000 100000\n")
    assert nested_v2.quota == 1.5


def test_the_least_of_nested_quotas_counts(tmp_path):
    written = Written(tmp_path, "5:cpu:/pods/box\n", ("/", "cpu", V1))
    written.write_v1("cpu/pods", "400000\n")
    written.write_v1("cpu/pods/box", "150000\n", "50000\n")
    assert written.quota == 3.0
    written.write_v1("cpu/pods", "200000\n")
    assert written.quota == 2.0


def test_nothing_above_the_mount_counts(nested_v2):
    nested_v2.write("cpu.max", "1000 100000\n")
    assert nested_v2.quota is None


@pytest.mark.parametrize("groups", ["0::/../../elsewhere\n", "0::/elsewhere\n"])
def test_of_a_group_outside_of_the_mount_the_mounted_one_counts(tmp_path, groups):
    written = Written(tmp_path, groups, ("/pods/box", "cg", V2))
    written.write("cg/cpu.max", "200000 100000\n")
    written.write("elsewhere/cpu.max", "1000 100000\n")
    assert written.quota == 2.0


def test_names_with_spaces_and_backslashes(tmp_path):
    """As systemd's: /proc/self/mountinfo escapes them, /proc/self/cgroup doesn't."""
    groups = "0::/a b\\x2dc.slice/box\n"
    written = Written(tmp_path, groups, ("/a\\040b\\134x2dc.slice", "my\\040groups", V2))
    written.write("my groups/box/cpu.max", "200000 100000\n")
    assert written.quota == 2.0


def test_both_versions_count_where_both_are_mounted(tmp_path):
    written = Written(tmp_path, "1:cpu:/a\n0::/b\n", ("/", "cpu", V1), ("/", "unified", V2))
    written.write_v1("cpu/a", "300000\n")
    assert written.quota == 3.0
    written.write("unified/b/cpu.max", "200000 100000\n")
    assert written.quota == 2.0


@pytest.mark.parametrize(
    "content", ["", "max", "lots 100000\n", "1 2 3\n", "5 0\n", "-7 100000\n", "0 100000\n"]
)
def test_a_malformed_quota_does_not_count_and_is_said_once(nested_v2, caplog, content):
    path = nested_v2.write("cg/pods/pod7/box/cpu.max", content)
    nested_v2.write("cg/pods/cpu.max", "200000 100000\n")
    assert [nested_v2.quota, nested_v2.quota] == [2.0, 2.0]
    [line] = caplog.messages
    assert line.startswith(f"{path}: ")
    assert repr(content) in line
    assert "does not count" in line


def test_an_unreadable_quota_does_not_count_and_is_said(v2, caplog):
    (v2.folder / "cg/cpu.max").mkdir(parents=True)  # root could read a file of mode 0
    assert v2.quota is None
    [line] = caplog.messages
    assert "Is a directory" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_quota_that_may_not_be_read_does_not_count_and_is_said(v2, caplog):
    v2.write("cg/cpu.max", "200000 100000\n").chmod(0)
    assert v2.quota is None
    [line] = caplog.messages
    assert "Permission denied" in line


def test_a_process_in_no_group_among_mounts_of_any_name(tmp_path):
    names = ("/", "cg", V2), ("/", "disk\u2028\x85\rof a user", "fuse  rw")
    assert Written(tmp_path, "", *names).quota is None


@pytest.mark.parametrize("file", ["cgroup", "mountinfo"])
def test_without_the_kernels_lists_there_is_no_quota(v2, caplog, file):
    v2.write("cg/cpu.max", "200000 100000\n")
    (v2.process / file).unlink()
    assert v2.quota is None
    assert not caplog.messages
    (v2.process / file).mkdir()
    with caplog.at_level(logging.WARNING):
        assert v2.quota is None
    [line] = caplog.messages
    assert file in line


def test_the_lowest_memory_limit_around_a_group_of_version_2_counts(nested_v2):
    nested_v2.write("cg/pods/pod7/box/memory.max", "max\n")
    lowest = nested_v2.write("cg/pods/pod7/memory.max", "104857600\n")
    nested_v2.write("cg/pods/memory.max", "209715200\n")
    events = "low 0\noom 2\noom_kill 1\noom_group_kill 7\n"
    nested_v2.write("cg/pods/pod7/box/memory.events", events)
    nested_v2.write("cg/pods/pod7/memory.events", "oom_kill 5\n")  # some of other groups
    limit, process = f"100 MiB ({lowest})", nested_v2.process
    assert (memory_limit(process), num_killed(process)) == (limit, 1)
    assert why_killed(1, process) is None
    assert why_killed(0, process) == f"by the kernel, at the memory limit of its cgroup, {limit}"


def test_where_memory_is_not_controlled_the_group_around_counts(nested_v2):
    nested_v2.write("cg/pods/pod7/memory.events", "oom_kill 5\n")
    assert num_killed(nested_v2.process) == 5


@pytest.mark.parametrize(("root", "seen"), [("/", "memory/job"), ("/job", "memory")])
def test_version_1_has_a_tree_for_memory(tmp_path, root, seen):
    groups = "9:cpu:/elsewhere\n4:memory:/job\n0::/\n"
    written = Written(tmp_path, groups, (root, "memory", V1_MEMORY), ("/", "unified", V2))
    limit = written.write(f"{seen}/memory.limit_in_bytes", "209715200\n")
    written.write(f"{seen}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert memory_limit(written.process) == f"200 MiB ({limit})"
    assert num_killed(written.process) == 3
    limit.write_text("9223372036854771712\n")
    assert memory_limit(written.process) is None
    killed = why_killed(2, written.process)
    assert killed == "by the kernel, since this machine had no memory left"


@pytest.mark.parametrize("groups", ["", "1:cpu:/\n", "0::/\n"])
def test_without_limits_of_memory_there_are_none(tmp_path, groups):
    process = Written(tmp_path, groups, ("/", "cg", V2)).process
    for each in (process, tmp_path / "nothing"):
        assert (memory_limit(each), num_killed(each), why_killed(0, each)) == (None, 0, None)


PROGRAM = """
from irv2.system.cgroups import num_killed, why_killed
import subprocess, sys
before = num_killed()
hog = subprocess.run([sys.executable, "-c", "bytearray(10**9)"])
print(hog.returncode, why_killed(before))
"""


def test_a_real_group_tells_who_was_killed():
    try:
        with limited_memory(64 << 20) as group:
            command = [*within(group), sys.executable, "-c", PROGRAM]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    limit = f"64 MiB ({group / MEMORY_LIMIT})"
    assert done.stdout == f"-9 by the kernel, at the memory limit of its cgroup, {limit}\n"
