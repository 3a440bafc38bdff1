"""The processor, memory, disks, ports and working folder: what needs nothing but Python."""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from irv2.doctor.finding import Finding, note, ok, problem
from irv2.errors import UsageError
from irv2.system.address import host_and_port, way_out
from irv2.system.cgroups import SELF, cpu_quota, lowest_memory_limit
from irv2.system.files import nearest
from irv2.system.machine import cpu_flags, describe_cores, processor

# Of the processor, with the kernel's name; int8 and bfloat16 are fast by the last of them.
_FEATURES = {
    "x86_64": {
        "AVX2": "avx2",
        "AVX512-VNNI": "avx512_vnni",
        "AVX-VNNI": "avx_vnni",
        "AVX512-BF16": "avx512_bf16",
        "AMX-INT8": "amx_int8",
        "AMX-BF16": "amx_bf16",
    },
    "aarch64": {"DotProd": "asimddp", "I8MM": "i8mm", "BF16": "bf16"},
}
_FAST_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
# A server with the full network holds 0.2 to 1.5 GB, by precision and backend (docs/serving.md).
_LEAST_BYTES, _ENOUGH_BYTES = 2**29, 2**31
# A run of the full network leaves 0.5 GB and needs as much while it saves; a cache has 0.5 GB.
_LEAST_ROOM_BYTES, _ENOUGH_ROOM_BYTES = 2**24, 2**30
_STAGES = ("train", "convert", "serve")


def check_processor() -> Finding:
    """Name the processor and those of its features that engines make use of."""
    flags, known = cpu_flags(), _FEATURES.get(platform.machine(), {})
    if not flags:
        return note("processor", f"{processor()}, of which the system does not tell the features")
    has = [name for name, flag in known.items() if flag in flags]
    lacks = [name for name in known if name not in has]
    found = f"{processor()}: " + "; ".join(
        f"{verb} {', '.join(names)}" for verb, names in (("has", has), ("lacks", lacks)) if names
    )
    if not flags & _FAST_INT8:
        return note("processor", f"{found}: int8 is hardly faster than float32", "measure it")
    return ok("processor", found)


def check_cores(process: Path = SELF) -> Finding:
    """Count the cores, and find the quota that leaves less than one of them."""
    quota = cpu_quota(process)
    if quota is not None and quota < 1:
        found = f"a quota of {quota:g} of a core: each answer takes {1 / quota:.2g} times as long"
        way_out = "raise the container's limit of processor time (docker --cpus, limits.cpu) to 1"
        return problem("cores", found, f"{way_out} or more")
    return ok("cores", describe_cores())


def check_memory(process: Path = SELF) -> Finding:
    """Compare memory that is free, or that the control group allows, with a server's needs."""
    num_bytes, what = _available_bytes(), "available"
    limit = lowest_memory_limit(process)
    if limit is not None and limit.num_bytes < num_bytes:
        num_bytes, what = limit.num_bytes, f"allowed by {limit.file}"
    found = f"{_gib(num_bytes)} {what}"
    needed = "the full network is served in 0.2 to 1.5 GiB"
    if num_bytes < _LEAST_BYTES:
        return problem("memory", f"{found}; {needed}", "free some, or raise the limit to 2 GiB")
    if num_bytes < _ENOUGH_BYTES:
        way_out = "allow 2 GiB for two models while one takes over from the other"
        return note("memory", f"{found}; {needed}", way_out)
    return ok("memory", found)


def check_folder(subject: str, folder: Path, advice: str) -> Finding:
    """See whether a folder, which may not exist yet, can be written and has room."""
    there = nearest(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return problem(subject, f"{there} can't be written", f"make it writable, or {advice}")
    free_bytes = shutil.disk_usage(there).free
    found = f"{folder}, {_gib(free_bytes)} free"
    if free_bytes < _LEAST_ROOM_BYTES:
        return problem(subject, f"{found}: no room", f"free some, or {advice}")
    if free_bytes < _ENOUGH_ROOM_BYTES:
        return note(subject, f"{found}, of 1 GiB that it may take", f"free some, or {advice}")
    return ok(subject, found)


def check_port(option: str, text: str) -> Finding:
    """Try to listen at HOST:PORT, and stop at once. Raises UsageError if it is no address."""
    address = host_and_port(text)
    if address is None:
        raise UsageError(option, repr(text), "HOST:PORT, as in 127.0.0.1:8500", way_out(text))
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server(address, family=family):
            return ok("port", f"{text} is free")
    except (OSError, UnicodeError) as error:  # UnicodeError for names such as a..b
        number = getattr(error, "errno", None) or 0  # negative of names that are not resolved
        reason = os.strerror(number).lower() if number > 0 else str(error)
        way_out_of_it = f"stop what uses it, or serve with another {option}"
        return problem("port", f"{text} can't be listened at ({reason})", way_out_of_it)


def check_working_folder(libraries: set[str]) -> Iterator[Finding]:
    """Find modules in the working folder that have the name of a library, of Python or a stage."""
    try:
        folder = Path.cwd()
    except FileNotFoundError:
        yield problem("working folder", "was removed", "change to a folder that exists")
        return
    if folder == Path(__file__).resolve().parents[2]:  # irv2's own
        return
    names = {*libraries, *sys.stdlib_module_names, *_STAGES}
    found = sorted(
        path.name
        for path in folder.iterdir()
        if (path.stem if path.suffix == ".py" else path.name) in names
        and (path.suffix == ".py" or (path / "__init__.py").is_file())
    )
    if found:
        yield note(
            "working folder",
            f"{', '.join(found)} in {folder}: named like a library or a stage; irv2's programs "
            "import nothing from there, but scripts that are started there do",
            "rename what your own scripts would take for the library",
        )


def _available_bytes() -> int:
    """What programs can get without swapping, by the kernel's own estimate."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) * 1024


def _gib(num_bytes: int) -> str:
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"
