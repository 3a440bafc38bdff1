"""Real cgroups with a limit of memory, on machines where one may be made."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


class NoGroup(Exception):
    """This machine lets no cgroup be made, or puts no limit on it."""


class MemoryGroup:
    """A cgroup with a limit, which processes enter by their ids."""

    def __init__(self, folder: Path, limit: Path) -> None:
        self.folder, self.limit = folder, limit

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def enter(self) -> None:
        """Put this process into the group: a `preexec_fn`."""
        self.add(os.getpid())


@contextmanager
def memory_group(mebibytes: int) -> Iterator[MemoryGroup]:
    """Make a group for the time of the block; whoever is left in it then leaves it."""
    is_v2 = (CGROUPS / "cgroup.controllers").exists()
    parent = CGROUPS if is_v2 else CGROUPS / "memory"
    folder = parent / f"irv2-test-{os.getpid()}"
    limit = folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")
    try:
        folder.mkdir()
    except OSError as error:
        raise NoGroup(f"no cgroup can be made: {error}") from error
    try:
        try:
            limit.write_text(str(mebibytes << 20))
        except OSError as error:
            raise NoGroup(f"no limit on a cgroup: {error}") from error
        yield MemoryGroup(folder, limit)
        for pid in (folder / "cgroup.procs").read_text().split():
            (parent / "cgroup.procs").write_text(pid)
    finally:
        folder.rmdir()
