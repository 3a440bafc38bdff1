"""The machine that this process runs on, in words, for evidence and measurements."""

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

from irv2.errors import EngineError
from irv2.system.gpu import find_gpu


@cache
def describe_machine() -> str:
    """Processor, cores that may be used, system, and the GPU if there is one."""
    parts = [processor(), f"{num_cores()} cores", f"{platform.system()} {platform.release()}"]
    with suppress(EngineError):  # none, or nothing installed that could use it
        parts.append(str(find_gpu()))
    return ", ".join(parts)


def processor() -> str:
    """Its model, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))
