"""Control groups: written ones, and real ones where they can be made here (else OSError)."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from irv2.system.cgroups import cpu_quota

ROOT = Path("/sys/fs/cgroup")
IS_V2 = (ROOT / "cgroup.controllers").exists()
V2 = "cgroup2 cgroup2 rw,nsdelegate"  # a mount, as the kernel lists it
MEMORY_LIMIT = "memory.max" if IS_V2 else "memory.limit_in_bytes"  # the file of a group


@contextmanager
def limited_memory(num_bytes: int) -> Iterator[Path]:
    """A group of processes that may use so much memory."""
    with group_in(_top("memory")) as group:
        (group / MEMORY_LIMIT).write_text(str(num_bytes))
        yield group


@contextmanager
def limited_time(cores: float) -> Iterator[Path]:
    """A group that may use the time of so many cores."""
    with group_in(_top("cpu")) as group:
        quota_us = round(cores * 100_000)
        if IS_V2:
            (group / "cpu.max").write_text(f"{quota_us} 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        yield group


def within(group: Path) -> list[str]:
    """What to put before a command so that it runs in the group."""
    return ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]


@contextmanager
def group_in(parent: Path) -> Iterator[Path]:
    """A group within another, without limits of its own. Its processes leave it at the end."""
    group = parent / f"irv2-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def _top(controller: str) -> Path:
    if not IS_V2:
        return ROOT / controller
    (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
    return ROOT


class Written:
    """/proc/self and mounted groups under one folder."""

    def __init__(self, folder: Path, groups: str, *mounts: tuple[str, str, str]) -> None:
        """`groups` is /proc/self/cgroup; a mount is its root, its place in `folder`, its kind."""
        self.folder, self.process = folder, folder / "self"
        self.process.mkdir()
        (self.process / "cgroup").write_text(groups)
        lines = ["21 1 0:19 / /proc rw,nosuid - proc proc rw\n"] + [
            f"3{i} 23 0:2{i} {root} {folder / place} rw,relatime shared:9 - {kind}\n"
            for i, (root, place, kind) in enumerate(mounts)
        ]
        (self.process / "mountinfo").write_text("".join(lines))

    def write(self, file: str, content: str) -> Path:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    def write_v1(self, group: str, quota: str, period: str = "100000\n") -> None:
        self.write(f"{group}/cpu.cfs_quota_us", quota)
        self.write(f"{group}/cpu.cfs_period_us", period)

    @property
    def quota(self) -> float | None:
        return cpu_quota(self.process)
