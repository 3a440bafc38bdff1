"""The processes of one run: those that torchrun started, or this one alone.

Every process holds the whole network and trains on its share of each batch. Only the first one
writes files and log lines. Processes agree on image counts, signals and errors by exchanging small
tensors on the CPU; DistributedDataParallel sums the gradients.
"""

import gc
import logging
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

# Imported before any group exists, since its functions take the current group as a default: if
# DistributedDataParallel imported it later, they would keep the group and its threads alive until
# the interpreter ends, which may then abort.
import torch.distributed.nn
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from irv2.errors import Irv2Error, UsageError
from irv2.runners.torch import resolve_device
from irv2.system.cgroups import num_killed, why_killed
from irv2.system.machine import world_size
from irv2.system.stop import wanted

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process's place in the run; `local` values count only processes on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def totals(self, *numbers: int) -> list[int]:
        """Sum each number over the processes."""
        return [int(value) for value in self.sum(torch.tensor(numbers)).tolist()]

    def largest(self, *numbers: int) -> list[int]:
        """Return the largest of each number over the processes."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return [int(value) for value in values.tolist()]

    def from_first(self, work: Callable[[], T]) -> T:
        """Return in all processes what `work` returns in the first; an Irv2Error there ends all."""
        if self.size == 1:
            return work()
        outcome: list[T | Irv2Error | None] = [None]
        if self.is_first:
            try:
                outcome = [work()]
            except Irv2Error as error:
                outcome = [error]
            except OSError as error:  # no permission, a full disk, a disk that is gone
                outcome = [Irv2Error(error.filename or "system", error.strerror or str(error))]
        dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        [result] = outcome
        if isinstance(result, Irv2Error):
            self.fail(result)
        return result  # type: ignore[return-value]

    def fail(self, error: Irv2Error) -> NoReturn:
        """Raise an error that all processes have found; all but the first raise SystemExit."""
        raise error if self.is_first else SystemExit(error.exit_code)

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` in every process; if any raises Irv2Error, the first such reports, all end."""
        mine: list[T] = []
        found = None
        try:
            mine.append(work())
        except Irv2Error as error:
            found = error
        turn = self.size - self.rank  # largest in the first process
        status, reporter = self.largest(*((found.exit_code, turn) if found else (0, 0)))
        if status:
            raise found if found and reporter == turn else SystemExit(status)
        return mine[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do `work` in the first process and, once it is done there, in the others."""
        mine: list[T] = []
        self.from_first(lambda: mine.append(work()))
        return mine[0] if mine else work()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the other processes that torchrun started, if any, as found in the environment.

    `device` is the value of --device. Nothing that uses the group, such as a
    DistributedDataParallel, may outlive the block. Raises Irv2Error if the device is missing or
    a process is lost: torchrun then ends, or restarts, all.
    """
    processes, killed = _from_environment(), num_killed()
    if processes.size == 1:
        resolve_device(device)
        yield processes
        return
    if not processes.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    num_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    has_gpu = processes.local_rank < num_gpus
    if has_gpu:
        torch.cuda.set_device(processes.local_rank)
    try:
        # They connect even without a GPU, to agree on which one reports the error.
        _connect("cpu:gloo,cuda:nccl" if has_gpu else "cpu:gloo", processes)
        processes.together(lambda: check_gpus(resolve_device(device), num_gpus, processes))
        yield processes
    except BaseException as error:
        is_lost = _means_lost_peer(error)
        if is_lost:  # ignore torchrun's SIGTERM, which follows and would hide the error
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _forget_locals(error)
        # If gloo lives until the interpreter ends, it may abort; NCCL might wait here for others.
        if dist.is_initialized() and not has_gpu:
            _leave()
        if not is_lost:
            raise
        raise Irv2Error(
            f"process {processes.rank} of {processes.size}",
            f"lost the others{_killed(killed)}",
            "all of them alive",
            "see which ended first; torchrun --max-restarts N restarts all from the last save",
        ) from error
    else:
        _leave()


def _leave() -> None:
    """End the group, which must be its own last holder.

    If a DistributedDataParallel is, it ends gloo while holding the interpreter's lock, for which
    gloo's threads may wait. An exception that a library caught while it was imported may keep the
    frames of its callers in a cycle, and with them their DistributedDataParallel.
    """
    gc.collect()
    dist.destroy_process_group()


def _killed(before: int) -> str:
    """Say that one of the others on this machine was killed for lack of memory, if so."""
    how = why_killed(before)
    return f", one of which was killed {how}" if how else ""


def _forget_locals(error: BaseException | None) -> None:
    """Free what the frames of a failure hold, such as a DistributedDataParallel: see `_leave`."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def check_gpus(device: str, num_gpus: int, processes: Processes) -> None:
    """Raise UsageError if, on cuda, this machine has fewer GPUs than processes of the run."""
    if device == "cuda" and num_gpus < processes.local_size:
        raise UsageError(
            "--device cuda",
            f"{num_gpus} GPUs for {processes.local_size} processes here",
            "one each",
            "lower torchrun's --nproc-per-node",
        )


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within the block, let signals end the process at once, while it waits in C++ for others.

    Python's handlers would not run there; nothing is lost, since nothing has begun.
    """
    before = {number: signal.signal(number, signal.SIG_DFL) for number in wanted()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@_ended_by_signals()
def _connect(backend: str, processes: Processes) -> None:
    store, rank, size = next(rendezvous("env://"))
    if processes.local_size == size:
        # torchrun keeps its store over restarts, with the addresses of ended processes, for which
        # new ones would wait. On several machines the counts of restarts may differ; then
        # TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 helps (docs/training.md).
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _from_environment() -> Processes:
    if world_size() == 1:
        return Processes()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise Irv2Error(
            "WORLD_SIZE",
            f"set without {', '.join(missing)}",
            "all of them, as torchrun sets them",
            "start with torchrun",
        )
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    return Processes(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


def _means_lost_peer(error: BaseException) -> bool:
    # gloo raises plain RuntimeErrors, recognised by its file names in their text.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
