"""Decoding processes that end with the trainer, whatever ends it.

They ignore the signals that reach the whole process group: the trainer saves first, and then ends
them. So nothing may leave them behind, not even an error that nobody foresaw.
"""

import atexit
import multiprocessing
import os
import resource
import signal
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

from irv2.errors import EngineError
from irv2.system.cgroups import num_killed, why_killed
from irv2.system.stop import LINES, raise_if_stopped

T = TypeVar("T")

# Open files of the trainer per worker: two pipes, and four tensors in each of four batches ahead.
FILES_PER_WORKER = 4 + 4 * 4
SPARE_FILES = 32  # for what comes later: images, checkpoints, pictures


def require_resources(workers: int) -> None:
    """Raise EngineError if `workers` processes could not send their batches here.

    Raises the soft limit of open files where that is too low and the hard one allows it.
    """
    if not workers:
        return
    needed = len(list(Path("/dev/fd").iterdir())) + FILES_PER_WORKER * workers + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise EngineError(
            f"--workers {workers}",
            f"this process may open {hard} files",
            f"{needed} or more",
            f"raise the limit (ulimit -n {needed}) or lower --workers; with 0 the trainer decodes",
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        multiprocessing.get_context().Lock()
        torch.empty(1).share_memory_()  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        raise_if_stopped()
        raise EngineError(
            "/dev/shm",
            f"can't be used ({error})",
            "shared memory, in which decoding processes send batches",
            "mount it (in Docker --shm-size 1g) or pass --workers 0: the trainer decodes",
        ) from error


def sent(loader: DataLoader[T]) -> Generator[T, None, None]:
    """Yield what the loader's workers send; once this ends, in whatever way, so have they.

    Raises EngineError if they can't be started, one is lost, or anything goes wrong in one.
    """
    if not loader.num_workers:
        yield from loader
        return
    others, killed = multiprocessing.active_children(), num_killed()
    workers = []
    try:
        try:
            batches = iter(loader)
        finally:  # the loader may have failed with some of them started
            workers = [w for w in multiprocessing.active_children() if w not in others]
        # The loader's handler would raise anywhere, even within a step or a save. Without it, a
        # lost worker is found within 5 s of asking for its batch.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield from batches
    except Exception as error:  # of torch, of the system, or raised in a worker
        raise_if_stopped()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EngineError(
            "a decoding process",
            f"was lost ({_killed(killed) or (lines[-1] if lines else type(error).__name__)})",
            "memory, processes and open files for all, and room in /dev/shm",
            "lower --workers; with 0 the trainer decodes",
        ) from error
    finally:
        for worker in workers:
            worker.kill()


def _killed(before: int) -> str | None:
    return f"killed {how}" if (how := why_killed(before)) else None


def prepare_worker(_worker: int) -> None:
    """Limit the worker to one thread, and leave signals to the process group to the trainer.

    End it if the trainer was killed meanwhile: torch looks from now on only whether the parent of
    this moment still lives.
    """
    trainer = multiprocessing.parent_process()
    if trainer and trainer.pid != os.getppid():
        os._exit(1)
    for number in LINES:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


@atexit.register
def _kill_workers() -> None:
    """End the workers of a generator that nobody closed: multiprocessing would wait for them."""
    for worker in multiprocessing.active_children():
        worker.kill()
