"""The quota of processor time that control groups set, as containers do (Linux, versions 1 and 2).

A quota is seen neither in the number of cores nor in the affinity: the kernel lets all threads run
on any core, and stops them for the rest of a tenth of a second once their time is used up.
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


class _Group(NamedTuple):
    folder: Path
    is_v2: bool


def cpu_quota(process: Path = Path("/proc/self")) -> float | None:
    """Return the number of cores' time that this process may use; None if nothing limits it.

    The least of the quotas of its group and of all groups around it, as far as they are mounted.
    One that can't be read does not count, and a warning says so.
    """
    quotas = [_quota(group) for group in _groups(process)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: _Group) -> float | None:
    names = ["cpu.max"] if group.is_v2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    text = ""
    try:
        text = " ".join((group.folder / name).read_text() for name in names)
        quota_us, period_us = text.split()
        if quota_us in ("max", "-1"):
            return None
        quota = int(quota_us) / int(period_us)
        if quota <= 0:
            raise ValueError("not positive")
    except FileNotFoundError:  # no root has one, nor a group whose processor time is not controlled
        return None
    except (OSError, ValueError, ArithmeticError) as error:
        reason = error if isinstance(error, OSError) else f"got {text!r}, expected two numbers"
        _warn_once(
            "%s: %s; threads are counted without this quota", group.folder / names[0], reason
        )
        return None
    return quota


def _groups(process: Path) -> Iterator[_Group]:
    """Yield the process's groups that can control processor time, and all groups around them."""
    try:
        groups, mounts = _lines(process / "cgroup"), _lines(process / "mountinfo")
    except FileNotFoundError:  # no Linux, or one without control groups
        return
    except OSError as error:
        _warn_once("%s; threads are counted without a quota of processor time", error)
        return
    # Formats: man 7 cgroups, "/proc files"; man 5 proc_pid_mountinfo.
    memberships = [line.split(":", 2) for line in groups]
    paths = {name: path for _, names, path in memberships for name in names.split(",")}
    for line in mounts:
        place, _, kind = line.partition(" - ")
        root, point = map(_unescaped, place.split(" ")[3:5])
        file_system, _, options = kind.split(" ", 2)
        is_v2 = file_system == "cgroup2"
        path = paths.get("" if is_v2 else "cpu")
        if path and (is_v2 or (file_system == "cgroup" and "cpu" in options.split(","))):
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
