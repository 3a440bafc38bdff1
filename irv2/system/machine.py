"""A description of the machine that this process runs on, for evidence and measurements."""

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

from irv2.errors import EngineError
from irv2.system.gpu import find_gpu


@cache
def describe_machine() -> str:
    """Name the processor, the cores that may be used, the system, and the GPU if there is one."""
    parts = [processor(), f"{num_cores()} cores", f"{platform.system()} {platform.release()}"]
    with suppress(EngineError):  # no GPU, or nothing installed that could use it
        parts.append(str(find_gpu()))
    return ", ".join(parts)


def processor() -> str:
    """Return the processor's model name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def world_size() -> int:
    """Return how many processes torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions that multiply in bfloat16."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return bool(words & {"amx_bf16", "avx512_bf16", "bf16"})  # the last is Arm's
