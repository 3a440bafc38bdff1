"""Batches for one engine: images in, logits out, no gRPC.

Earliest deadline first. An engine runs a batch on each of its streams. A batch starts at once when
a stream is idle and fills while all are busy.
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
from functools import partial
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
    memory: UInt8Array  # with room for `max_batch` images
    images: UInt8Array | list[UInt8Array]  # there, or where they lie if the engine gathers them
    started_at: float = 0.0
    all_busy: bool = False  # whether no stream has been idle since it started
    done: "asyncio.Future[_Ranked] | None" = None


class Batcher:
    """Runs batches of at most `max_batch` images on the streams of one engine.

    Belongs to one event loop.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch: int,
        max_queue_delay_ms: float = 0.0,
        engine: Executor | None = None,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_failure: Callable[[], None] = lambda: None,
        on_change: Callable[[], None] = lambda: None,
        ranks: bool = True,
    ) -> None:
        """`max_queue_delay_ms` lets an idle stream wait for a fuller batch.

        `engine` is where `runner` runs: a thread for each stream by default. `on_batch` hears of
        each batch's size and seconds, `on_failure` of each batch that failed. `on_change` is
        called when a batch has started or ended: predictions are others than before. Unless it
        `ranks`, answers have logits alone, and empty arrays beside them.
        """
        assert 0 < max_batch <= runner.max_batch
        self.max_batch, self.num_streams, self.times = max_batch, runner.num_streams, BatchTimes()
        self._runner, self._on_batch, self._on_failure = runner, on_batch, on_failure
        self._on_change, self._ranks = on_change, ranks
        self._max_delay_s = max_queue_delay_ms / 1e3
        self._engine = engine or ThreadPoolExecutor(self.num_streams, thread_name_prefix="engine")
        self._loop = asyncio.get_running_loop()
        self._queue: list[Entry] = []  # by deadline
        self._running: list[_Batch] = []  # one on each stream at most
        self._staged: _Batch | None = None  # prepared while others run
        # Of no batch: as much as is needed while every stream runs one and the next is staged.
        self._memory = [runner.batch_memory(max_batch) for _ in range(self.num_streams + 1)]
        self._company: asyncio.TimerHandle | None = None

    @property
    def num_running(self) -> int:
        """Batches that run."""
        return len(self._running)

    @property
    def num_ending(self) -> int:
        """Images in the batch that ends first, given up or not; 0 while a stream is idle."""
        if self._has_idle_stream:
            return 0
        return len(min(self._running, key=self._ends_at).entries)

    def free_in_s(self) -> list[float]:
        """Seconds until each stream is likely to be free, the first one first."""
        now = self._loop.time()
        return [at - now for at in self.free_at()]

    def free_at(self) -> list[float]:
        """When each stream is likely to be free, the first one first."""
        now = self._loop.time()
        idle = [now] * (self.num_streams - len(self._running))
        return idle + sorted(max(now, self._ends_at(batch)) for batch in self._running)

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

    async def run_apart(self, images: UInt8Array) -> list[FloatArray]:
        """Logits of a batch that belongs to no request, by each stream, all at once.

        The slowest stream's time counts if nothing else runs. Raises whatever the engine raises.
        """
        is_alone, started_at = not self._running, self._loop.time()
        ranked = await asyncio.gather(
            *(
                self._loop.run_in_executor(self._engine, self._run, images)
                for _ in range(self.num_streams)
            )
        )
        if is_alone:
            self.times.learn(len(images), self._loop.time() - started_at)
        return [logits for logits, *_ in ranked]

    def hurry(self) -> None:
        """Let no batch wait for company from now on."""
        self._max_delay_s = 0.0
        self._advance()

    async def close(self) -> None:
        """Wait for the batches that run and free the engine's threads; nothing may be queued."""
        while running := [batch.done for batch in self._running if batch.done]:
            await asyncio.wait(running)
        # It may still be warming up or testing a model that was given up; the loop must not wait.
        await asyncio.to_thread(self._engine.shutdown)

    def _advance(self) -> None:
        """Give each idle stream its next batch; prepare one if all are busy and it can be full."""
        while self._has_idle_stream and (batch := self._take_staged() or self._form()):
            self._start(batch)
        if self._has_idle_stream:
            for batch in self._running:
                batch.all_busy = False
        elif self._staged is None and len(self._queue) >= self.num_streams * self.max_batch:
            self._staged = self._form()  # as full as can be: no streams will share these images

    def _take_staged(self) -> _Batch | None:
        now, batch = self._loop.time(), self._staged
        if batch and any(entry.answer.done() or entry.deadline <= now for entry in batch.entries):
            self._unstage()  # a member was given up: the batch is formed anew without it
        batch, self._staged = self._staged, None
        return batch

    def _unstage(self) -> None:
        assert self._staged
        self._memory.append(self._staged.memory)
        for entry in self._staged.entries:
            if not entry.answer.done():
                insort(self._queue, entry, key=attrgetter("deadline"))
        self._staged = None

    def _form(self) -> _Batch | None:
        """The next batch, if one should run as soon as it can."""
        self._expire()
        if not self._queue or self._wait_for_company():
            return None
        chosen = self._choose()
        taken = set(chosen)
        self._queue = [entry for entry in self._queue if entry not in taken]
        memory, images = self._memory.pop(), [entry.image for entry in chosen]
        if self._runner.gathers:
            return _Batch(chosen, memory, images)
        return _Batch(chosen, memory, np.stack(images, out=memory[: len(chosen)]))

    def _choose(self) -> list[Entry]:
        """The most urgent entries, as many as the first one's deadline allows.

        Entries that can't be in time any more yield to those that can. A small batch for the sake
        of the first is a luxury: where it would make the others late, the batch is full, and holds
        those that can wait for its end.
        """
        starts_at, *others = free_at = self.free_at()
        waiting = self._in_time(starts_at + self.times.predict(1))
        full = self._share(len(waiting), free_at)
        left_s = waiting[0].deadline - starts_at
        size = next((n for n in range(full, 0, -1) if self.times.predict(n) <= left_s), full)
        then_free_at = sorted([starts_at + self.times.predict(size), *others])
        if size == full or self._can_wait(waiting[size:], then_free_at):
            return waiting[:size]
        return self._in_time(starts_at + self.times.predict(full))[:full]

    def _share(self, num_images: int, free_at: list[float]) -> int:
        """How many of the images that wait the next stream takes, if no deadline asks for less.

        It takes what it can, unless it and the streams that are free next, with even parts, would
        all be done before it alone. So nobody waits longer for the sake of sharing, and batches are
        full under load. Those who let a stream wait for a fuller batch want no smaller ones.
        """
        full = min(num_images, self.max_batch)
        if self._max_delay_s:
            return full
        size, ends_at = full, free_at[0] + self.times.predict(full)
        for num_streams, last_at in enumerate(free_at[1:], start=2):
            part = min(-(-num_images // num_streams), self.max_batch)
            if last_at + self.times.predict(part) < ends_at:
                size, ends_at = part, last_at + self.times.predict(part)
        return size

    def _in_time(self, ends_at: float) -> list[Entry]:
        """The entries, most urgent first, for which `ends_at` is early enough; all if none is."""
        return [entry for entry in self._queue if ends_at <= entry.deadline] or self._queue

    def _can_wait(self, entries: list[Entry], free_at: list[float]) -> bool:
        """Whether batches as full as can be, on streams that are free then, answer all in time."""
        most = self.max_batch
        return all(
            self.times.starts_at(i // most, most, free_at)
            + self.times.predict(min(most, len(entries) - i // most * most))
            <= entry.deadline
            for i, entry in enumerate(entries)
        )

    def _expire(self) -> None:
        now = self._loop.time()
        while self._queue and self._queue[0].deadline <= now:
            entry = self._queue.pop(0)
            if not entry.answer.done():
                entry.answer.set_exception(Expired("deadline", "passed in the queue", "queue"))

    def _wait_for_company(self) -> bool:
        """Whether an idle stream should wait for a fuller batch; if so, set a timer for its end."""
        if self._company:
            self._company.cancel()
            self._company = None
        is_full = len(self._queue) >= self.max_batch
        if not self._max_delay_s or is_full or not self._has_idle_stream:
            return False
        latest = self._queue[0].deadline - self.times.predict(len(self._queue))
        until = min(latest, min(entry.queued_at for entry in self._queue) + self._max_delay_s)
        if until <= self._loop.time():
            return False
        self._company = self._loop.call_at(until, self._advance)
        return True

    @property
    def _has_idle_stream(self) -> bool:
        return len(self._running) < self.num_streams

    def _ends_at(self, batch: _Batch) -> float:
        return batch.started_at + self.times.predict(len(batch.entries))

    def _start(self, batch: _Batch) -> None:
        batch.started_at = self._loop.time()
        self._running.append(batch)
        batch.all_busy = not self._has_idle_stream
        for entry in batch.entries:
            if not entry.answer.done():
                entry.has_started = True
                entry.on_start(entry)
        batch.done = self._loop.run_in_executor(self._engine, self._run, batch.images)
        batch.done.add_done_callback(partial(self._finish, batch))
        self._on_change()

    def _run(self, images: UInt8Array | list[UInt8Array]) -> _Ranked:
        """Run one batch, in a thread of the engine, sorting included.

        numpy releases the interpreter lock while it sorts; on the event loop, getting it back would
        take some 50 us each time while images are decoded.
        """
        runner = self._runner
        logits = runner.run_gathered(images) if isinstance(images, list) else runner.run(images)
        if logits.shape != (len(images), runner.num_classes) or not np.isfinite(logits).all():
            raise EngineError("engine", f"gave {logits.shape} logits", "one finite row per image")
        if not self._ranks:
            return logits, logits[:, :0], np.empty((len(images), 0), np.int64)
        return logits, softmax(logits), top_k_indices(logits, runner.num_classes)

    def _finish(self, batch: _Batch, future: asyncio.Future[_Ranked]) -> None:
        self._running.remove(batch)
        self._memory.append(batch.memory)
        seconds = self._loop.time() - batch.started_at
        failure = future.exception()
        if failure is None:
            self.times.learn(len(batch.entries), seconds, all_busy=batch.all_busy)
            self._on_batch(len(batch.entries), seconds)
        else:
            logger.error("batch_failed size=%d", len(batch.entries), exc_info=failure)
            self._on_failure()
        self._on_change()
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
