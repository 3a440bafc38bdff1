"""Batches for one engine: images in, logits out, no gRPC.

Earliest deadline first. A batch starts at once when the engine is idle and fills while it is busy.
Images that expired or were withdrawn never reach the engine. Everything but the engine's `run`
happens on the event loop, whose clock is the only one, so that a test can replace both.
"""

import asyncio
import logging
from bisect import insort
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

import numpy as np

from irv2.errors import EngineError, Expired
from irv2.results import softmax, top_k_indices
from irv2.runners.base import Runner
from irv2.serve.pipeline.batch_times import BatchTimes
from irv2.types import FloatArray, IntArray, UInt8Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's answer for one image, arrays (num_classes,), and where the time went."""

    logits: FloatArray
    probabilities: FloatArray
    order: IntArray  # the classes' indices, best first
    queue_s: float
    inference_s: float


# A batch's logits, probabilities and order, each (N, num_classes).
_Ranked: TypeAlias = tuple[FloatArray, FloatArray, IntArray]


@dataclass(slots=True, eq=False)
class Entry:
    """An image, uint8 RGB (S, S, 3), in the queue or a batch; `answer` may raise an Irv2Error."""

    image: UInt8Array
    deadline: float
    on_start: Callable[["Entry"], None]
    queued_at: float
    answer: asyncio.Future[Answer]
    has_started: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    entries: list[Entry]
    images: UInt8Array
    started_at: float = 0.0
    done: "asyncio.Future[_Ranked] | None" = None


class Batcher:
    """Runs batches of at most `max_batch` images on one engine. Belongs to one event loop."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch: int,
        max_queue_delay_ms: float = 0.0,
        engine: Executor | None = None,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`max_queue_delay_ms` lets an idle engine wait for a fuller batch.

        `engine` is where `runner` runs: a thread by default. `on_batch` hears of each batch's size
        and seconds, `on_failure` of each batch that failed.
        """
        assert 0 < max_batch <= runner.max_batch
        self.max_batch, self.times = max_batch, BatchTimes()
        self._runner, self._on_batch, self._on_failure = runner, on_batch, on_failure
        self._max_delay_s = max_queue_delay_ms / 1e3
        self._engine = engine or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop = asyncio.get_running_loop()
        self._queue: list[Entry] = []  # by deadline
        self._running: _Batch | None = None
        self._staged: _Batch | None = None  # prepared while another one runs
        # The first for the next batch, the second for the one that runs.
        self._memory = [runner.batch_memory(max_batch), runner.batch_memory(max_batch)]
        self._company: asyncio.TimerHandle | None = None

    @property
    def num_running(self) -> int:
        """Images in the batch that runs, given up or not."""
        return len(self._running.entries) if self._running else 0

    def busy_s(self) -> float:
        """Seconds until the engine is likely to be free."""
        return max(0.0, self._free_at() - self._loop.time()) if self._running else 0.0

    def submit(
        self, image: UInt8Array, deadline: float, on_start: Callable[[Entry], None]
    ) -> Entry:
        """Queue one uint8 RGB (S, S, 3), whose batch may start before this returns."""
        now, answer = self._loop.time(), self._loop.create_future()
        entry = Entry(image, deadline, on_start, now, answer)
        if self._staged and deadline < self._staged.entries[-1].deadline:
            self._unstage()  # it is more urgent than some of them
        insort(self._queue, entry, key=attrgetter("deadline"))
        self._advance()
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Remove an entry whose caller has stopped waiting; its image must not wait for the engine.

        Does nothing to one that has started or was answered; a staged one is left out at its start.
        """
        if not entry.has_started:
            with suppress(ValueError):
                self._queue.remove(entry)

    async def run_apart(self, images: UInt8Array) -> FloatArray:
        """Logits of a batch that belongs to no request; its time counts if nothing else runs.

        Raises whatever the engine raises.
        """
        is_alone, started_at = self._running is None, self._loop.time()
        logits, *_ = await self._loop.run_in_executor(self._engine, self._run, images)
        if is_alone:
            self.times.learn(len(images), self._loop.time() - started_at)
        return logits

    def hurry(self) -> None:
        """Let no batch wait for company from now on."""
        self._max_delay_s = 0.0
        self._advance()

    async def close(self) -> None:
        """Wait for the batch that runs and free the engine's thread; nothing may be queued."""
        while self._running and self._running.done:
            await asyncio.wait([self._running.done])
        # It may still be warming up or testing a model that was given up; the loop must not wait.
        await asyncio.to_thread(self._engine.shutdown)

    def _advance(self) -> None:
        """Give a free engine its next batch; prepare one for a busy engine if it can be full."""
        batch = None if self._running else self._take_staged() or self._form(self._loop.time())
        if batch:
            self._start(batch)
        if self._running and self._staged is None and len(self._queue) >= self.max_batch:
            self._staged = self._form(self._free_at())

    def _take_staged(self) -> _Batch | None:
        now, batch = self._loop.time(), self._staged
        if batch and any(entry.answer.done() or entry.deadline <= now for entry in batch.entries):
            self._unstage()  # a member was given up: the batch is formed anew without it
        batch, self._staged = self._staged, None
        return batch

    def _unstage(self) -> None:
        assert self._staged
        for entry in self._staged.entries:
            if not entry.answer.done():
                insort(self._queue, entry, key=attrgetter("deadline"))
        self._staged = None

    def _form(self, starts_at: float) -> _Batch | None:
        """The next batch, if one should run as soon as it can."""
        self._expire()
        if not self._queue or self._wait_for_company():
            return None
        chosen = self._choose(starts_at)
        self._queue = [entry for entry in self._queue if entry not in chosen]
        images = self._memory[0][: len(chosen)]
        return _Batch(chosen, np.stack([entry.image for entry in chosen], out=images))

    def _choose(self, starts_at: float) -> list[Entry]:
        """The most urgent entries, as many as the first one's deadline allows.

        Entries that can't be in time any more yield to those that can. A small batch for the sake
        of the first is a luxury: where it would make the others late, the batch is full, and holds
        those that can wait for its end.
        """
        waiting = self._in_time(starts_at + self.times.predict(1))
        full = min(len(waiting), self.max_batch)
        left_s = waiting[0].deadline - starts_at
        size = next((n for n in range(full, 0, -1) if self.times.predict(n) <= left_s), full)
        if size == full or self._can_wait(waiting[size:], starts_at + self.times.predict(size)):
            return waiting[:size]
        return self._in_time(starts_at + self.times.predict(full))[:full]

    def _in_time(self, ends_at: float) -> list[Entry]:
        """The entries, most urgent first, for which `ends_at` is early enough; all if none is."""
        return [entry for entry in self._queue if ends_at <= entry.deadline] or self._queue

    def _can_wait(self, entries: list[Entry], starts_at: float) -> bool:
        """Whether full batches from `starts_at` on answer all entries in time."""
        batch_s = self.times.predict(self.max_batch)
        return all(
            starts_at + (i // self.max_batch + 1) * batch_s <= entry.deadline
            for i, entry in enumerate(entries)
        )

    def _expire(self) -> None:
        now = self._loop.time()
        while self._queue and self._queue[0].deadline <= now:
            entry = self._queue.pop(0)
            if not entry.answer.done():
                entry.answer.set_exception(Expired("deadline", "passed in the queue", "queue"))

    def _wait_for_company(self) -> bool:
        """Whether an idle engine should wait for a fuller batch; if so, set a timer for its end."""
        if self._company:
            self._company.cancel()
            self._company = None
        if not self._max_delay_s or self._running or len(self._queue) >= self.max_batch:
            return False
        latest = self._queue[0].deadline - self.times.predict(len(self._queue))
        until = min(latest, min(entry.queued_at for entry in self._queue) + self._max_delay_s)
        if until <= self._loop.time():
            return False
        self._company = self._loop.call_at(until, self._advance)
        return True

    def _free_at(self) -> float:
        assert self._running
        return self._running.started_at + self.times.predict(len(self._running.entries))

    def _start(self, batch: _Batch) -> None:
        batch.started_at = self._loop.time()
        self._running = batch
        self._memory.reverse()
        for entry in batch.entries:
            if not entry.answer.done():
                entry.has_started = True
                entry.on_start(entry)
        batch.done = self._loop.run_in_executor(self._engine, self._run, batch.images)
        batch.done.add_done_callback(self._finish)

    def _run(self, images: UInt8Array) -> _Ranked:
        """Run one batch, in the engine's thread, sorting included.

        numpy releases the interpreter lock while it sorts; on the event loop, getting it back would
        take some 50 us each time while images are decoded.
        """
        logits = self._runner.run(images)
        if logits.shape != (len(images), self._runner.num_classes) or not np.isfinite(logits).all():
            raise EngineError("engine", f"gave {logits.shape} logits", "one finite row per image")
        return logits, softmax(logits), top_k_indices(logits, self._runner.num_classes)

    def _finish(self, future: asyncio.Future[_Ranked]) -> None:
        batch, self._running = self._running, None
        assert batch
        seconds = self._loop.time() - batch.started_at
        failure = future.exception()
        if failure is None:
            self.times.learn(len(batch.entries), seconds)
            self._on_batch(len(batch.entries), seconds)
        else:
            logger.error("batch_failed size=%d", len(batch.entries), exc_info=failure)
            self._on_failure()
        for i, entry in enumerate(batch.entries):
            if entry.answer.done():  # cancelled while it ran
                continue
            if failure is None:
                logits, probabilities, order = (part[i] for part in future.result())
                queue_s = batch.started_at - entry.queued_at
                entry.answer.set_result(Answer(logits, probabilities, order, queue_s, seconds))
            else:
                entry.answer.set_exception(EngineError("engine", "failed on this batch"))
        self._advance()
