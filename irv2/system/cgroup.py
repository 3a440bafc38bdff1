"""The memory limit of this process's cgroup: of a container, a batch job or a systemd unit.

At that limit the kernel kills a process of the group, which can say nothing. Another one that is
left can, since the kernel counts them.
"""

from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
_NO_LIMIT = 2**60  # version 1 writes the largest number of pages, version 2 "max"


class _Group(NamedTuple):
    folder: Path
    mount: Path  # of the folder's outermost parent
    limit_file: str
    events_file: str


def memory_limit(root: Path = _ROOT) -> str | None:
    """Name the lowest limit of this process's group and those around it; None if there is none."""
    group = _group(root)
    if group is None:
        return None
    limits = []
    for folder in (group.folder, *group.folder.parents):
        file = folder / group.limit_file
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append((int(text), file))
        if folder == group.mount:
            break
    num_bytes, file = min(limits, default=(_NO_LIMIT, group.folder))
    return None if num_bytes >= _NO_LIMIT else f"{num_bytes >> 20} MiB ({file})"


def num_killed(root: Path = _ROOT) -> int:
    """Count the processes of this group that the kernel has killed for lack of memory."""
    group = _group(root)
    if group is None or not (group.folder / group.events_file).is_file():  # none in the root group
        return 0
    events = (line.split() for line in (group.folder / group.events_file).read_text().splitlines())
    return sum(int(value) for name, value in events if name == "oom_kill")


def why_killed(before: int, root: Path = _ROOT) -> str | None:
    """Say why the kernel has killed more of the group than `before`; None if it has not."""
    if num_killed(root) <= before:
        return None
    limit = memory_limit(root)
    if limit is None:
        return "by the kernel, since this machine had no memory left"
    return f"by the kernel, at the memory limit of its cgroup, {limit}"


def _group(root: Path) -> _Group | None:
    """Find this process's group; one with the memory controller of version 1 has its own tree."""
    listed = root / "proc/self/cgroup"
    lines = listed.read_text().splitlines() if listed.is_file() else []
    paths = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    mount = root / "sys/fs/cgroup"
    if (path := paths.get("memory")) is not None:
        mount, files = mount / "memory", ("memory.limit_in_bytes", "memory.oom_control")
    elif (path := paths.get("")) is not None:
        files = ("memory.max", "memory.events")
    else:
        return None
    folder = mount / path.lstrip("/")
    # Some containers see the group's path outside, and the group itself at the mount.
    return _Group(folder if folder.is_dir() else mount, mount, *files)
