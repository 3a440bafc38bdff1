"""A description of the machine that this process runs on, for evidence and measurements."""

import math
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

from irv2.errors import EngineError
from irv2.system.cgroups import cpu_quota
from irv2.system.gpu import find_gpu


@cache
def describe_machine() -> str:
    """Name the processor, the cores that may be used, the system, and the GPU if there is one."""
    parts = [processor(), describe_cores(), f"{platform.system()} {platform.release()}"]
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


def is_first_here() -> bool:
    """Whether no other process of torchrun on this machine came first, to say what all would."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def num_cores() -> int:
    """Count the cores that this process may use, by affinity and quota; a part of one counts whole.

    As many threads as this, of engines, decoders and libraries, are started unless told otherwise.
    """
    allowed, quota = _num_allowed(), cpu_quota()
    return allowed if quota is None else min(allowed, math.ceil(quota))


def _num_allowed() -> int:
    return len(os.sched_getaffinity(0))


def describe_cores() -> str:
    """Say how many cores this process may use, and of how many because of which quota."""
    allowed, quota = _num_allowed(), cpu_quota()
    if quota is None or quota >= allowed:
        return f"{allowed} cores"
    return f"{num_cores()} of {allowed} cores (quota {quota:g})"


# Of x86, the most capable first: name -> the flag in /proc/cpuinfo. Kernels differ between them.
_INSTRUCTION_SETS = {
    "amx": "amx_int8",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx512": "avx512f",
    "avx_vnni": "avx_vnni",
    "avx2": "avx2",
}


def instruction_set(backend: str) -> str:
    """Name the kind of processor on which `backend` computes here, for which evidence counts.

    Of a CPU the most capable instruction set that it has, else its architecture; of a GPU the
    compute capability. Raises EngineError if there is no GPU for the backend.
    """
    if not backend.endswith("-cpu"):
        return f"sm_{find_gpu().capability.replace('.', '')}"
    flags = cpu_flags()
    found = (name for name, flag in _INSTRUCTION_SETS.items() if flag in flags)
    return next(found, platform.machine())


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions that multiply in bfloat16."""
    return bool(cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"})  # the last is Arm's


def cpu_flags() -> set[str]:
    """The processor's features by the kernel's names; empty where it does not give them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    parted = (line.partition(":") for line in lines)
    named = [values for name, _, values in parted if name.strip() in ("flags", "Features")]
    return set(" ".join(named).split())
