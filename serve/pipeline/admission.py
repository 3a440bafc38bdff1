"""Promises to requests: who gets a place in front of the engine, and who is refused on arrival.

A request that can't be answered in time is refused at once and told when to come back. Requests
admitted later never make one late that has places. Only the event loop's clock is read.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from irv2.errors import Expired, NotServing, Overloaded
from irv2.serve.pipeline.batch_times import BatchTimes
from irv2.serve.pipeline.batcher import Answer, Batcher, Entry
from irv2.types import UInt8Array

# A predicted answer may take 1 / MARGIN of the time to its deadline: now and then a batch takes a
# tenth longer than the average, and the answer still has to reach the client (DECISIONS.md).
MARGIN = 1.2


class AnyBatcher(Protocol):
    """What admission asks of the batcher, which may run in another process."""

    max_batch: int
    num_streams: int
    times: BatchTimes

    @property
    def num_ending(self) -> int:
        """Images in the batch that ends first; 0 while a stream is idle."""

    def free_in_s(self) -> list[float]:
        """Seconds until each stream is likely to be free, the first one first."""

    def hurry(self) -> None:
        """Let no batch wait for company from now on."""

    async def close(self) -> None:
        """Wait for the batches that run."""


class Promised(Protocol):
    """The images that were promised an answer and have none yet: each waits or runs."""

    @property
    def waiting(self) -> Sequence[float]:
        """The deadlines of those that have not started, sorted."""

    @property
    def num_preparing(self) -> int:
        """Those of this process that still have to be prepared."""

    @property
    def num_images(self) -> int:
        """All of them."""


class Places(Protocol):
    """Places for the images of one request; leaving the `with` block frees those not used."""

    was_running: bool  # whether an image was in the engine when it was given up

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    async def run(self, image: UInt8Array) -> Answer:
        """Use a place and wait for the answer to one uint8 RGB (S, S, 3).

        Raises Expired when the deadline passed in the queue and EngineError when its batch failed.
        """


class Promises(Protocol):
    """The promises that were made, and the only way to make one."""

    all_kept: asyncio.Event  # set while this process has made none that is open

    def look(self) -> Promised:
        """Return what is promised now."""

    def give(self, num_images: int, deadline: float, *, prepared: bool) -> Places:
        """Promise these images an answer by `deadline`."""


class LocalPromises:
    """The promises of one process, in front of its batcher."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.waiting: list[float] = []  # the deadlines of those that have not started, sorted
        self.num_running = 0
        self.num_preparing = 0  # those waiting that still have to be prepared
        self.all_kept = asyncio.Event()
        self.all_kept.set()

    @property
    def num_images(self) -> int:
        """Those that wait and those that run."""
        return len(self.waiting) + self.num_running

    def look(self) -> Promised:
        """Return itself, which is always up to date."""
        return self

    def give(self, num_images: int, deadline: float, *, prepared: bool) -> "LocalPlaces":
        """Promise these images an answer by `deadline`."""
        at = bisect_right(self.waiting, deadline)
        self.waiting[at:at] = [deadline] * num_images
        self.num_preparing += 0 if prepared else num_images
        self.all_kept.clear()
        return LocalPlaces(self, num_images, deadline, prepared)

    def start(self, entry: Entry) -> None:
        """Note that the image of this entry reaches the engine."""
        self._stop_waiting(1, entry.deadline)
        self.num_running += 1

    def end(self, num_images: int, deadline: float, *, has_started: bool = False) -> None:
        """Note that images were answered or given up, or their places never used."""
        if has_started:
            self.num_running -= num_images
        else:
            self._stop_waiting(num_images, deadline)
        if not self.num_images:
            self.all_kept.set()

    def _stop_waiting(self, num_images: int, deadline: float) -> None:
        at = bisect_left(self.waiting, deadline)
        del self.waiting[at : at + num_images]


class LocalPlaces:
    """Places in front of the batcher of this process."""

    def __init__(
        self, promises: LocalPromises, num_images: int, deadline: float, prepared: bool
    ) -> None:
        self._promises, self._deadline = promises, deadline
        self._num_unused, self._preparing = num_images, 0 if prepared else 1
        self.was_running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._promises.num_preparing -= self._num_unused * self._preparing
        self._promises.end(self._num_unused, self._deadline)
        self._num_unused = 0

    async def run(self, image: UInt8Array) -> Answer:
        """Use a place and wait for the answer; raises what Places.run does."""
        assert self._num_unused > 0
        self._num_unused -= 1
        self._promises.num_preparing -= self._preparing
        batcher = self._promises.batcher
        entry = batcher.submit(image, self._deadline, self._promises.start)
        try:
            return await entry.answer
        except asyncio.CancelledError:
            self.was_running |= entry.has_started
            raise
        finally:
            batcher.withdraw(entry)
            self._promises.end(1, self._deadline, has_started=entry.has_started)


class Admission:
    """Hands out places in front of one batcher. Belongs to one event loop."""

    def __init__(
        self,
        batcher: AnyBatcher,
        promises: Promises,
        max_queue: int,
        prepare_s: Callable[[int], float],
    ) -> None:
        """At most `max_queue` images have places at a time, those being decoded included.

        `prepare_s` predicts the seconds until that many images of all requests are submitted.
        """
        self._batcher, self._max_batch, self._times = batcher, batcher.max_batch, batcher.times
        self._max_queue, self._prepare_s = max_queue, prepare_s
        self._now = asyncio.get_running_loop().time
        self._promises = promises
        self._closing = False

    @property
    def num_admitted(self) -> int:
        """Images that have a place and no answer yet."""
        return self._promises.look().num_images

    def predicted_wait_s(self, num_images: int = 1) -> float:
        """Seconds until `num_images` more would be answered, from the queue and measured times."""
        promised = self._promises.look()
        total = len(promised.waiting) + num_images
        free_s = self._batcher.free_in_s()
        ready_s = self._prepare_s(promised.num_preparing + num_images)
        return ready_s + self._run_s(total - 1, total, free_s)

    def admit(self, num_images: int, deadline: float, *, prepared: bool = False) -> Places:
        """Places for `num_images`, all to be answered by `deadline` (the loop's clock).

        `prepared` images need no time before they are submitted. Raises what `check` raises.
        """
        self.check(num_images, deadline, prepared=prepared)
        places = self._promises.give(num_images, deadline, prepared=prepared)
        # Another process may have given some since the check.
        if num_images < (num_admitted := self.num_admitted) > self._max_queue:
            places.__exit__()
            raise self._full(num_admitted - num_images)
        return places

    def check(self, num_images: int, deadline: float, *, prepared: bool = False) -> None:
        """Raise the Overloaded, Expired or NotServing that `admit` would; takes no place.

        Images due later run later, so they don't delay these, but must still be in time. An idle
        server tries whatever was possible once: one slow batch (a machine that slept) must not
        count for ever.
        """
        if self._closing:
            raise NotServing("server", "is stopping", way_out="ask another one")
        if deadline <= self._now():
            raise Expired("deadline", "passed before the request arrived", "arrival")
        promised = self._promises.look()
        num_admitted = promised.num_images
        if num_admitted and num_admitted + num_images > self._max_queue:
            raise self._full(num_admitted)
        if num_admitted or self._is_hopeless(num_images, deadline):
            self._check_time(promised, num_images, deadline, 0 if prepared else num_images)

    async def idle(self) -> None:
        """Wait until nothing that was admitted is left: neither decoded nor queued nor run."""
        while self.num_admitted:
            await self._promises.all_kept.wait()

    async def close(self) -> None:
        """Admit nothing more, wait until everything admitted is answered, close the batcher."""
        self._closing = True
        self._batcher.hurry()
        await self._promises.all_kept.wait()
        await self._batcher.close()

    def _full(self, num_admitted: int) -> Overloaded:
        got = f"{num_admitted} images are waiting, at most {self._max_queue} may"
        retry_after_s = self._times.predict(self._max_batch) / self._batcher.num_streams
        return Overloaded("server", got, retry_after_s, reason="queue_full")

    def _is_hopeless(self, num_images: int, deadline: float) -> bool:
        """Whether full batches, each as fast as the fastest so far, would take too long.

        A single batch on each stream is always tried.
        """
        size, num_streams = self._max_batch, self._batcher.num_streams
        rounds = -(-(num_images // size) // num_streams)
        is_larger = num_images > size * num_streams
        return is_larger and rounds * self._times.fastest(size) > deadline - self._now()

    def _check_time(
        self, promised: Promised, num_images: int, deadline: float, num_unprepared: int
    ) -> None:
        """Raise Overloaded where these images, or any that they overtake, would be late."""
        now, size, waiting = self._now(), self._max_batch, promised.waiting
        total = len(waiting) + num_images
        place = bisect_right(waiting, deadline) + num_images  # of the first one behind them
        # Until all images are prepared, these included.
        ready_s = self._prepare_s(promised.num_preparing + num_unprepared)
        free_s = self._batcher.free_in_s()
        answer_s, left_s = ready_s + self._run_s(place - 1, total, free_s), deadline - now
        if (late_s := answer_s * MARGIN - left_s) > 0:
            got = f"{answer_s:.3g} s to the answer, {left_s:.3g} s to the deadline"
            raise Overloaded("server", got, late_s, reason="deadline")
        # Behind them, the first image of each batch: the rest of the batch is due later.
        while place < total:
            left_s = waiting[place - num_images] - now
            if (late_s := (ready_s + self._run_s(place, total, free_s)) * MARGIN - left_s) > 0:
                got = f"a request admitted earlier would be {late_s:.3g} s late"
                raise Overloaded("server", got, late_s, reason="deadline")
            place += size - place % size

    def _run_s(self, place: int, total: int, free_s: list[float]) -> float:
        """To the answer of the image in that place, from 0, of `total`, if all are prepared.

        The first batch is counted as large as it is likely to become: all that wait, and about as
        many more as came before the batch that ends next. The others are counted as full.

        Preparing and running overlap, so the sum of their times is an upper limit: at most one of
        them is the bottleneck, and its time is nearly all of the sum.
        """
        batch, size = place // self._max_batch, self._max_batch
        last_size = size if batch else min(size, total + self._batcher.num_ending)
        return self._times.starts_at(batch, size, free_s) + self._times.predict(last_size)
