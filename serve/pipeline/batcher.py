"""The one owner of the queue in front of an engine: images in, logits out, no gRPC.

Earliest deadline first. A batch starts at once when the engine is idle and fills while it is
busy. What can't be done in time is refused on arrival; what expired or was cancelled meanwhile
never reaches the engine. Everything but the engine's `run` happens on the event loop, whose clock
is the only one, so that a test can replace both.
"""

import asyncio
import logging
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from irv2.errors import EngineError, Expired, NotServing, Overloaded
from irv2.results import softmax, top_k_indices
from irv2.runners.base import Runner
from irv2.serve.pipeline.batch_times import BatchTimes
from irv2.types import FloatArray, IntArray, UInt8Array

logger = logging.getLogger(__name__)

# Of the time to a request's deadline, what is predicted may fill 1 / MARGIN: a batch takes now and
# then a tenth longer than the average, and the answer has a way to go (DECISIONS.md).
MARGIN = 1.2


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's answer for one image, each (num_classes,), and where the time went.

    `order` holds the classes' indices, best first.
    """

    logits: FloatArray
    probabilities: FloatArray
    order: IntArray
    queue_s: float
    inference_s: float


class _Ranked(NamedTuple):
    """A batch's logits, probabilities and order, each (N, num_classes)."""

    logits: FloatArray
    probabilities: FloatArray
    order: IntArray


@dataclass(slots=True, eq=False)
class _Entry:
    image: UInt8Array
    deadline: float
    queued_at: float
    answer: asyncio.Future[Answer]
    has_started: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    entries: list[_Entry]
    images: UInt8Array
    started_at: float = 0.0


class Admission:
    """Places for the images of one request; leaving the `with` block frees those not taken."""

    def __init__(
        self, batcher: "Batcher", num_images: int, deadline: float, prepared: bool
    ) -> None:
        self._batcher, self._num_left, self.deadline = batcher, num_images, deadline
        self._prepared = prepared
        self.was_running = False  # when it was given up: one of its images, in the engine

    def __enter__(self) -> "Admission":
        return self

    def __exit__(self, *_: object) -> None:
        self._to_prepare(-self._num_left)
        self._batcher._run_no_more(self.deadline, self._num_left)
        self._batcher._leave(self._num_left)
        self._num_left = 0

    async def run(self, image: UInt8Array) -> Answer:
        """Take a place and wait for the answer to one uint8 RGB (S, S, 3).

        Raises Expired when the deadline passed in the queue and EngineError when its batch failed.
        """
        assert self._num_left > 0
        self._num_left -= 1
        self._to_prepare(-1)
        entry = self._batcher._enqueue(image, self.deadline)
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self.was_running |= entry.has_started
            raise
        finally:
            self._batcher._drop(entry)
            self._batcher._leave(1)

    def _to_prepare(self, change: int) -> None:
        if not self._prepared:
            self._batcher._num_preparing += change


class Batcher:
    """Runs batches of at most `max_batch` images on one engine. Belongs to one event loop."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch: int,
        max_queue: int,
        max_queue_delay_ms: float = 0.0,
        engine: Executor | None = None,
        prepare_s: Callable[[int], float] = lambda num_images: 0.0,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`max_queue` bounds the images admitted at a time, those being decoded included.

        `max_queue_delay_ms` lets an idle engine wait for company. `engine` is where `runner` runs:
        a thread by default. `prepare_s` says how long so many images take before they are
        submitted, all those admitted earlier included. `on_batch` hears of each batch's size and
        seconds, `on_failure` of each that failed.
        """
        assert 0 < max_batch <= runner.max_batch
        self._runner, self._prepare_s = runner, prepare_s
        self._on_batch, self._on_failure = on_batch, on_failure
        self._max_batch, self._max_queue = max_batch, max_queue
        self._max_delay_s = max_queue_delay_ms / 1e3
        self._engine = engine or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop = asyncio.get_running_loop()
        self._times = BatchTimes()
        self._queue: list[_Entry] = []  # by deadline
        self._running: _Batch | None = None
        self._staged: _Batch | None = None  # prepared while another one runs
        # The first for the next batch, the second for the one that runs.
        self._memory = [runner.batch_memory(max_batch), runner.batch_memory(max_batch)]
        self._company: asyncio.TimerHandle | None = None
        self._num_admitted = 0
        self._num_preparing = 0  # of those admitted: not submitted yet
        self._deadlines: list[float] = []  # of those admitted: not started yet; sorted
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_admitted(self) -> int:
        """Images that have a place and no answer yet."""
        return self._num_admitted

    def predicted_wait_s(self, num_images: int = 1) -> float:
        """How long `num_images` more would take from now, from the queue and measured times."""
        total = len(self._deadlines) + num_images
        return self._free_s(num_images) + self._run_s(total - 1, total)

    def admit(self, num_images: int, deadline: float, *, prepared: bool = False) -> Admission:
        """Places for `num_images`, all to be answered by `deadline` (the loop's clock).

        `prepared` images need no time before they are submitted. Raises what `check` raises.
        """
        self.check(num_images, deadline, prepared=prepared)
        admission = Admission(self, num_images, deadline, prepared)
        self._num_admitted += num_images
        at = bisect_right(self._deadlines, deadline)
        self._deadlines[at:at] = [deadline] * num_images
        admission._to_prepare(num_images)
        self._idle.clear()
        return admission

    def check(self, num_images: int, deadline: float, *, prepared: bool = False) -> None:
        """Raise Overloaded, Expired or NotServing where there is no place for them; takes none.

        What is due later runs later, so only those due before count, and those due later must
        still be in time. An idle server tries whatever was possible once: one slow batch (a machine
        that slept) must not be believed for ever.
        """
        if self._closing:
            raise NotServing("server", "is stopping", way_out="ask another one")
        if deadline <= self._loop.time():
            raise Expired("deadline", "passed before the request arrived", "arrival")
        if self._num_admitted or self._is_hopeless(num_images, deadline):
            self._refuse_overload(num_images, deadline, 0 if prepared else num_images)

    async def warm_up(self, sizes: Iterable[int]) -> None:
        """Run blank batches of these sizes, so that their times are known before any request."""
        side = self._runner.image_size
        for size in sizes:
            await self.run_apart(np.zeros((size, side, side, 3), np.uint8))

    async def run_apart(self, images: UInt8Array) -> FloatArray:
        """Logits of a batch that belongs to no request; its time is learned if nothing else runs.

        Raises what the engine raises.
        """
        is_alone, started_at = self._running is None, self._loop.time()
        ranked = await self._loop.run_in_executor(self._engine, self._run, images)
        if is_alone:
            self._times.learn(len(images), self._loop.time() - started_at)
        return ranked.logits

    async def close(self) -> None:
        """Admit nothing more, answer everything admitted, free the engine's thread."""
        self._closing = True
        self._advance()
        await self._idle.wait()
        # Its thread may still warm up or test a model that is given up; the loop must not wait.
        await asyncio.to_thread(self._engine.shutdown)

    def _is_hopeless(self, num_images: int, deadline: float) -> bool:
        """Whether full batches, each as fast as the fastest yet, take longer than is left.

        One batch is always tried: nobody waits for longer than that.
        """
        fastest_s = num_images // self._max_batch * self._times.fastest(self._max_batch)
        return num_images > self._max_batch and fastest_s > deadline - self._loop.time()

    def _refuse_overload(self, num_images: int, deadline: float, num_unprepared: int) -> None:
        if self._num_admitted + num_images > self._max_queue:
            got = f"{self._num_admitted} images are waiting, at most {self._max_queue} may"
            raise Overloaded(
                "server", got, self._times.predict(self._max_batch), reason="queue_full"
            )
        now, size = self._loop.time(), self._max_batch
        total = len(self._deadlines) + num_images
        place = bisect_right(self._deadlines, deadline) + num_images  # of the first one behind
        free_s = self._free_s(num_unprepared)
        answer_s, left_s = free_s + self._run_s(place - 1, total), deadline - now
        if (late_s := answer_s * MARGIN - left_s) > 0:
            got = f"{answer_s:.3g} s to the answer, {left_s:.3g} s to the deadline"
            raise Overloaded("server", got, late_s, reason="deadline")
        # Of those behind, the first of each batch: the others are due later, and done with it.
        while place < total:
            behind = self._deadlines[place - num_images]
            late_s = (free_s + self._run_s(place, total)) * MARGIN - (behind - now)
            if late_s > 0:
                got = f"a request admitted earlier would be {late_s:.3g} s late"
                raise Overloaded("server", got, late_s, reason="deadline")
            place += size - place % size

    def _free_s(self, num_unprepared: int) -> float:
        """Until the engine is free, and all to be prepared are, with `num_unprepared` more.

        Preparing and running overlap, so this is an upper limit: at most one of them is the
        bottleneck, and its time is nearly all of the sum.
        """
        wait_s = self._prepare_s(self._num_preparing + num_unprepared)
        if self._running:
            wait_s += max(0.0, self._engine_free_at() - self._loop.time())
        return wait_s

    def _run_s(self, place: int, total: int) -> float:
        """From a free engine to the answer of the image in that place, from 0, of `total`.

        A first batch is as large as it is likely to become: those waiting, and about as many as
        came while the one that runs was waiting. All others are full.
        """
        if place >= self._max_batch:
            return (place // self._max_batch + 1) * self._times.predict(self._max_batch)
        joining = len(self._running.entries) if self._running else 0
        return self._times.predict(min(self._max_batch, total + joining))

    def _enqueue(self, image: UInt8Array, deadline: float) -> _Entry:
        entry = _Entry(image, deadline, self._loop.time(), self._loop.create_future())
        if self._staged and deadline < self._staged.entries[-1].deadline:
            self._unstage()  # it is more urgent than some of them
        insort(self._queue, entry, key=attrgetter("deadline"))
        self._advance()
        return entry

    def _drop(self, entry: _Entry) -> None:
        """Nobody waits for it any more."""
        if not entry.has_started:  # cancelled or expired; its memory must not wait for the engine
            self._run_no_more(entry.deadline, 1)
            if entry in self._queue:
                self._queue.remove(entry)

    def _run_no_more(self, deadline: float, num_images: int) -> None:
        """So many images of this deadline are no longer ahead of others."""
        at = bisect_left(self._deadlines, deadline)
        del self._deadlines[at : at + num_images]

    def _leave(self, num_images: int) -> None:
        self._num_admitted -= num_images
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._num_admitted and self._running is None:
            self._idle.set()

    def _advance(self) -> None:
        """Give a free engine its next batch; prepare one for a busy engine if it can be full."""
        batch = None if self._running else self._take_staged() or self._form(self._loop.time())
        if batch:
            self._start(batch)
        if self._running and self._staged is None and len(self._queue) >= self._max_batch:
            self._staged = self._form(self._engine_free_at())

    def _take_staged(self) -> _Batch | None:
        now, batch = self._loop.time(), self._staged
        if batch and any(entry.answer.done() or entry.deadline <= now for entry in batch.entries):
            self._unstage()  # someone gave up: it is formed anew from those who did not
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

    def _choose(self, starts_at: float) -> list[_Entry]:
        """The most urgent entries, as many as the first one's deadline allows.

        What can't be in time any more yields to what can. A small batch for the first one's sake
        is a luxury: where the others would then be late, the batch is full, and of those who can
        wait for its end.
        """
        waiting = self._in_time(starts_at + self._times.predict(1))
        full = min(len(waiting), self._max_batch)
        left_s = waiting[0].deadline - starts_at
        size = next((n for n in range(full, 0, -1) if self._times.predict(n) <= left_s), full)
        if size == full or self._can_wait(waiting[size:], starts_at + self._times.predict(size)):
            return waiting[:size]
        return self._in_time(starts_at + self._times.predict(full))[:full]

    def _in_time(self, ends_at: float) -> list[_Entry]:
        """The entries, most urgent first, for which `ends_at` is early enough; else all."""
        return [entry for entry in self._queue if ends_at <= entry.deadline] or self._queue

    def _can_wait(self, entries: list[_Entry], starts_at: float) -> bool:
        """Whether all are in time in full batches from `starts_at` on."""
        batch_s = self._times.predict(self._max_batch)
        return all(
            starts_at + (i // self._max_batch + 1) * batch_s <= entry.deadline
            for i, entry in enumerate(entries)
        )

    def _expire(self) -> None:
        now = self._loop.time()
        while self._queue and self._queue[0].deadline <= now:
            entry = self._queue.pop(0)
            if not entry.answer.done():
                entry.answer.set_exception(Expired("deadline", "passed in the queue", "queue"))

    def _wait_for_company(self) -> bool:
        """Whether an idle engine should wait for a fuller batch; then a timer will advance."""
        if self._company:
            self._company.cancel()
            self._company = None
        if not self._max_delay_s or self._closing or self._running:
            return False
        if len(self._queue) >= self._max_batch:
            return False
        latest = self._queue[0].deadline - self._times.predict(len(self._queue))
        until = min(latest, min(entry.queued_at for entry in self._queue) + self._max_delay_s)
        if until <= self._loop.time():
            return False
        self._company = self._loop.call_at(until, self._advance)
        return True

    def _engine_free_at(self) -> float:
        assert self._running
        return self._running.started_at + self._times.predict(len(self._running.entries))

    def _start(self, batch: _Batch) -> None:
        batch.started_at = self._loop.time()
        self._running = batch
        self._memory.reverse()
        for entry in batch.entries:
            if not entry.answer.done():
                entry.has_started = True
                self._run_no_more(entry.deadline, 1)
        future = self._loop.run_in_executor(self._engine, self._run, batch.images)
        future.add_done_callback(self._finish)

    def _run(self, images: UInt8Array) -> _Ranked:
        """In the engine's thread, sorting included.

        numpy gives the interpreter lock away while it sorts, and while images are decoded the
        event loop would wait some 50 us for it each time.
        """
        logits = self._runner.run(images)
        if logits.shape != (len(images), self._runner.num_classes) or not np.isfinite(logits).all():
            raise EngineError("engine", f"gave {logits.shape} logits", "one finite row per image")
        return _Ranked(logits, softmax(logits), top_k_indices(logits, self._runner.num_classes))

    def _finish(self, future: asyncio.Future[_Ranked]) -> None:
        batch, self._running = self._running, None
        assert batch
        seconds = self._loop.time() - batch.started_at
        failure = future.exception()
        if failure is None:
            self._times.learn(len(batch.entries), seconds)
            self._on_batch(len(batch.entries), seconds)
        else:
            logger.error("batch_failed size=%d", len(batch.entries), exc_info=failure)
            self._on_failure()
        for i, entry in enumerate(batch.entries):
            if entry.answer.done():  # cancelled while it ran
                continue
            if failure is None:
                queue_s = batch.started_at - entry.queued_at
                logits, probabilities, order = (part[i] for part in future.result())
                answer = Answer(logits, probabilities, order, queue_s, seconds)
                entry.answer.set_result(answer)
            else:
                entry.answer.set_exception(EngineError("engine", "failed on this batch"))
        self._advance()
        self._note_idle()
