"""Memory of a process in which engines come and go; measured with the full network in fp32."""

import ctypes
import gc
import os

_M_ARENA_MAX = -8  # glibc's malloc.h


def keep_few_arenas() -> None:
    """Let threads share glibc's heaps, one per core instead of eight; before threads start.

    Every model brings new threads, and what one of them left in a heap of its own holds that heap:
    seven new models left 380 MB resident, with two heaps 359 MB after each of them (2026-11-24).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have none
        libc.mallopt(_M_ARENA_MAX, len(os.sched_getaffinity(0)))


def return_freed_memory() -> None:
    """Free what nothing refers to, and hand freed pages back.

    Parts of a model know each other, so that only the collector finds them. And glibc keeps what
    an engine freed in small pieces: 640 MB are resident after a new model took over, 359 MB with
    this call (2026-11-24).
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
