"""Too little memory: how Python and the libraries say so, and one line about it."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path

from irv2.errors import EngineError, Irv2Error
from irv2.system.cgroups import memory_limit
from irv2.system.stop import raise_if_stopped

WHAT = "memory"
# Kept free for the line about the lack of it: address space alone, for nobody writes there.
_RESERVE_BYTES = 4 << 20
_SIGNS = (
    "bad_alloc",  # C++, in torch, ONNX Runtime and protobuf
    "bad allocation",
    "can't allocate memory",  # torch
    "Cannot allocate memory",  # the system, as other libraries pass it on
    "Failed to allocate memory",  # ONNX Runtime
    "Insufficient memory",  # OpenCV
    "failed to map segment from shared object",  # importing a library
    "can't start new thread",  # no room for its stack, or too many processes
    "Unable to allocate",  # NumPy, as other libraries pass it on
    "descriptor pool: out of memory",  # protobuf
    "could not create a primitive",  # oneDNN, in torch: no room for a kernel's code
    "without setting an exception",  # C code that met a NULL from an allocation
    "error return without exception set",
)


def lack_of_memory(error: BaseException) -> str | None:
    """Return the words in `error`, or in what caused it, that there was no memory; None if none.

    Libraries make other exceptions of it, and so do we: a file that can't be read, for one.
    """
    cause: BaseException | None = error
    while cause:
        if words := _words_of(cause):
            return words
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


@contextmanager
def explain_lack_of_memory() -> Iterator[None]:
    """Around a program: raise EngineError about the memory, whatever a library made of it."""
    reserve = mmap(-1, _RESERVE_BYTES)
    try:
        yield
    except Exception as error:
        raise_if_stopped()
        reserve.close()
        reason = lack_of_memory(error)
        if reason is None or (isinstance(error, Irv2Error) and error.what == WHAT):
            raise
        raise EngineError(
            WHAT,
            f"{_in_use()} ({reason})",
            "room for the whole program",
            "free some, raise the limit (where threads are named, ulimit -u or that of pids too), "
            "or lower --workers, --batch-size or --max-batch",
        ) from error


def resident_bytes() -> int:
    """Return how much memory this process has, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def limit_of_process() -> str:
    """Name the limit of this process and its children, as shells do; empty if there is none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return "" if limit == resource.RLIM_INFINITY else f"ulimit -v {limit >> 10}"


def _words_of(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return str(error) or "MemoryError"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return error.strerror
    lines = str(error).splitlines()
    return next((line.strip() for line in lines if any(sign in line for sign in _SIGNS)), None)


def _in_use() -> str:
    """Say how much memory this process has, and what limits it."""
    line = f"{resident_bytes() >> 20} MiB in use"
    if of_process := limit_of_process():
        line += f", {of_process}"
    return f"{line}, its cgroup's limit {of_group}" if (of_group := memory_limit()) else line
