"""What the server asks of its process: memory for engines that come and go, and scheduling.

Memory was measured with the full network in fp32.
"""

import asyncio
import ctypes
import gc
import logging
import os
import sys

from irv2.system.machine import num_cores
from irv2.system.memory import resident_bytes

logger = logging.getLogger(__name__)

LOOK_EVERY_S, WORTH_RETURNING = 2.0, 32 * 2**20
_M_ARENA_MAX = -8  # glibc's malloc.h


def keep_few_arenas() -> None:
    """Let threads share glibc's heaps, one per core instead of eight; call before threads start.

    Every model starts new threads, and whatever one of them leaves in a heap of its own keeps that
    heap: seven new models left 380 MB resident; with two heaps, 359 MB after each (2026-11-24).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have none
        libc.mallopt(_M_ARENA_MAX, num_cores())


def tidy_up() -> None:
    """Free unreachable objects, return freed pages, and exempt the rest from garbage collection.

    The parts of a model refer to each other, so only the collector finds them. And glibc keeps the
    small pieces that an engine freed: 640 MB are resident after a new model took over, 359 MB with
    this call (2026-11-24). Everything left lives as long as the model. Scanning it stopped the
    event loop for 32 ms every other second under load, and 1 % of refusals reached their clients
    after 32 ms instead of 12 (2026-11-26).
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    _return_freed_pages()


async def return_memory() -> None:
    """Return freed pages while much more is resident than at the lowest, until cancelled; Linux.

    What large messages leave lies between small pieces that live on, so glibc keeps it: 60 to 130
    MB after some messages of 60 MB (2026-11-30). Returning holds up whoever asks for memory, 2 ms
    where little is free and 40 ms where 150 MB are, so it is done for WORTH_RETURNING alone.
    """
    if sys.platform != "linux":
        return
    lowest = resident_bytes()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        resident = resident_bytes()
        lowest = min(lowest, resident)
        if resident > lowest + WORTH_RETURNING:
            await asyncio.to_thread(_return_freed_pages)


def _return_freed_pages() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # other C libraries have none
        libc.malloc_trim(0)


def wait_for_a_turn() -> None:
    """Let waking threads wait for a processor instead of preempting the one that runs; Linux only.

    By default each request that gRPC receives preempts the engine, whose other threads then wait
    for the preempted one. SCHED_BATCH leaves the process's share of the processor as it is; at 10
    times the capacity it raised goodput from 0.76 to 0.82 (DECISIONS.md). Call it before threads
    start, since they inherit it. A policy other than the default was someone's choice and stays.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    try:
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a sandbox that forbids it only makes the server slower
        logger.warning("no_batch_scheduling error=%s", error)
