"""The limits that control groups (cgroups) set on this process (Linux, versions 1 and 2).

Containers, batch jobs and systemd's units have them. A quota of processor time is seen neither in
the number of cores nor in the affinity: the kernel lets all threads run on any core, and stops them
for the rest of a tenth of a second once their time is used up. At a limit of memory the kernel
kills a process of the group, which can say nothing. Another one that is left can, since the kernel
counts them.
"""

import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)
_warn_once = cache(logger.warning)

SELF = Path("/proc/self")
_NO_LIMIT = 2**60  # version 1 writes the largest number of pages, version 2 "max"


class _Group(NamedTuple):
    folder: Path
    is_v2: bool


def cpu_quota(process: Path = SELF) -> float | None:
    """Return the number of cores' time that this process may use; None if nothing limits it.

    The least of the quotas of its group and of all groups around it, as far as they are mounted.
    One that can't be read does not count, and a warning says so.
    """
    quotas = [_quota(group) for group in _groups("cpu", process)]
    return min((quota for quota in quotas if quota is not None), default=None)


class MemoryLimit(NamedTuple):
    """A limit of memory, and the kernel's file that sets it."""

    num_bytes: int
    file: Path


def memory_limit(process: Path = SELF) -> str | None:
    """Name the lowest limit of this process's group and those around it; None if there is none."""
    lowest = lowest_memory_limit(process)
    return lowest and f"{lowest.num_bytes >> 20} MiB ({lowest.file})"


def lowest_memory_limit(process: Path = SELF) -> MemoryLimit | None:
    """Return that limit, as `memory_limit` names it."""
    limits = []
    for folder, is_v2 in _groups("memory", process):
        file = folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")
        if (text := _read(file)) and text.strip().isdigit():
            limits.append(MemoryLimit(int(text), file))
    lowest = min(limits, default=None)
    return lowest if lowest and lowest.num_bytes < _NO_LIMIT else None


def num_killed(process: Path = SELF) -> int:
    """Count the processes of this group that the kernel has killed for lack of memory."""
    for folder, is_v2 in _groups("memory", process):
        # A group without the file is not controlled: its memory counts in the group around it.
        if text := _read(folder / ("memory.events" if is_v2 else "memory.oom_control")):
            return sum(int(number) for number in re.findall(r"^oom_kill (\d+)$", text, re.M))
    return 0


def why_killed(before: int, process: Path = SELF) -> str | None:
    """Say why the kernel has killed more of the group than `before`; None if it has not."""
    if num_killed(process) <= before:
        return None
    limit = memory_limit(process)
    if limit is None:
        return "by the kernel, since this machine had no memory left"
    return f"by the kernel, at the memory limit of its cgroup, {limit}"


def _quota(group: _Group) -> float | None:
    names = ["cpu.max"] if group.is_v2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    texts = [text for name in names if (text := _read(group.folder / name)) is not None]
    if len(texts) < len(names):  # none in a root, nor where processor time is not controlled
        return None
    text = " ".join(texts)
    try:
        quota_us, period_us = text.split()
        if quota_us in ("max", "-1"):
            return None
        quota = int(quota_us) / int(period_us)
        if quota <= 0:
            raise ValueError("not positive")
    except (ValueError, ArithmeticError):
        file = group.folder / names[0]
        _warn_once("%s: got %r, expected two numbers; this quota does not count", file, text)
        return None
    return quota


def _read(file: Path) -> str | None:
    """Return None if there is no such file, and if it can't be read, which a warning says."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn_once("%s: can't be read (%s); this limit does not count", file, error.strerror)
        return None


def _groups(controller: str, process: Path) -> Iterator[_Group]:
    """Yield the process's groups that can have the controller, each before those around it."""
    try:
        groups, mounts = _lines(process / "cgroup"), _lines(process / "mountinfo")
    except FileNotFoundError:  # no Linux, or one without control groups
        return
    except OSError as error:
        _warn_once("%s; limits of control groups do not count", error)
        return
    # Formats: man 7 cgroups, "/proc files"; man 5 proc_pid_mountinfo.
    memberships = [line.split(":", 2) for line in groups]
    paths = {name: path for _, names, path in memberships for name in names.split(",")}
    for line in mounts:
        place, _, kind = line.partition(" - ")
        root, point = map(_unescaped, place.split(" ")[3:5])
        file_system, _, options = kind.split(" ", 2)
        is_v2 = file_system == "cgroup2"
        path = paths.get("" if is_v2 else controller)
        if path and (is_v2 or (file_system == "cgroup" and controller in options.split(","))):
            for folder in _upwards(Path(path), Path(root), Path(point)):
                yield _Group(folder, is_v2)


def _upwards(path: Path, root: Path, point: Path) -> Iterator[Path]:
    """Yield the folder of the group `path`, and those around it up to the mount `point` of `root`.

    A group outside of `root`, as in some containers, is not to be seen: the mounted one is nearest.
    """
    is_inside = path.is_relative_to(root) and ".." not in path.parts
    parts = path.relative_to(root).parts if is_inside else ()
    for depth in range(len(parts), -1, -1):
        yield point.joinpath(*parts[:depth])


def _lines(path: Path) -> list[str]:
    """A mount may have any name: `str.splitlines` would split it at more than ends of lines."""
    return [line for line in os.fsdecode(path.read_bytes()).split("\n") if line]


def _unescaped(field: str) -> str:
    """Undo the octal escapes of spaces and backslashes in /proc/self/mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
