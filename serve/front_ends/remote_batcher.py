"""What a front end's admission and pipeline have in place of the batcher: its figures, its queue.

All of it is read from the memory that is shared with the engine's process.
"""

import asyncio
from typing import Self

import numpy as np

from irv2.errors import EngineError, Expired, Overloaded
from irv2.results import softmax, top_k_indices
from irv2.serve.front_ends.channel import ANSWERED, EXPIRED, FAILED, SUBMIT, WITHDRAW, Channel
from irv2.serve.front_ends.segment import DONE, FREE, PREPARING, RUNNING, WAITING, Segment
from irv2.serve.pipeline.batch_times import BatchTimes
from irv2.serve.pipeline.batcher import Answer
from irv2.types import UInt8Array

RETRY_S = 0.1  # for those who find all places given up but not yet free


class RemoteTimes(BatchTimes):
    """The times of batches, measured and published by the engine's process."""

    def __init__(self, segment: Segment) -> None:
        super().__init__()
        self._predicted_s, self._fastest_s = segment.predicted_s, segment.fastest_s

    def fastest(self, size: int) -> float:
        """Seconds of the fastest batch of `size` images; 0 before any has run."""
        return float(self._fastest_s[size])

    def predict(self, size: int) -> float:
        """Seconds for `size` images; 0 at first."""
        return float(self._predicted_s[size])


class RemoteBatcher:
    """The figures of the batcher, as they were when a batch last began or ended."""

    def __init__(self, segment: Segment, channel: Channel) -> None:
        self.max_batch, self.num_streams = segment.layout.max_batch, segment.layout.num_streams
        self.times: BatchTimes = RemoteTimes(segment)
        self._segment, self._channel = segment, channel

    @property
    def num_ending(self) -> int:
        """Images in the batch that ends first; 0 while a stream is idle."""
        return int(self._segment.num_ending[0])

    def free_in_s(self) -> list[float]:
        """Seconds until each stream is likely to be free, the first one first."""
        now = asyncio.get_running_loop().time()
        return [max(0.0, at - now) for at in self._segment.free_at.tolist()]

    def hurry(self) -> None:
        """Do nothing: the engine's process knows when a model gets no more requests."""

    async def close(self) -> None:
        """Tell the engine's process that no more requests will come."""
        self._channel.close()


class Snapshot:
    """The promises of all front ends at one moment."""

    def __init__(self, segment: Segment, number: int, now: float) -> None:
        """What a front end that hangs has promised counts up to its deadline alone."""
        states, deadlines = segment.states.copy(), segment.deadlines
        is_preparing = states == PREPARING
        waiting = deadlines[is_preparing | (states == WAITING)]
        self.waiting: list[float] = np.sort(waiting[waiting > now]).tolist()
        self.num_preparing = int(np.count_nonzero(is_preparing[number]))
        self.num_images = len(self.waiting) + int(np.count_nonzero(states == RUNNING))


class RemotePromises:
    """The promises of a front end, beside those of the others. Belongs to one event loop."""

    def __init__(self, segment: Segment, number: int, channel: Channel) -> None:
        """`number` is that of this front end; `channel` leads to the engine's process."""
        self._segment, self._number, self._channel = segment, number, channel
        self._states, self._deadlines = segment.states[number], segment.deadlines[number]
        self._images = segment.images[number]
        self._num_places = segment.layout.num_places
        # The place that was used last is taken first, so that few of them are ever written to.
        self._free = list(range(self._num_places))
        self._open: dict[int, asyncio.Future[Answer]] = {}  # submitted, by place
        self._loop = asyncio.get_running_loop()
        self.all_kept = asyncio.Event()
        self.all_kept.set()

    def look(self) -> Snapshot:
        """Return what all front ends have promised."""
        return Snapshot(self._segment, self._number, self._loop.time())

    def give(self, num_images: int, deadline: float, *, prepared: bool) -> "RemotePlaces":
        """Promise these images an answer by `deadline`."""
        if num_images > len(self._free):
            got = "the engine's process has not freed the places of requests that were given up"
            raise Overloaded("server", got, RETRY_S, reason="queue_full")
        places = [self._free.pop() for _ in range(num_images)]
        self._deadlines[places] = deadline
        self._states[places] = WAITING if prepared else PREPARING
        self.all_kept.clear()
        return RemotePlaces(self, places)

    def receive(self, place: int, what: int) -> None:
        """Take the reply about a place from the engine's process."""
        answer = self._open.pop(place)
        if answer.done():  # given up
            pass
        elif what == ANSWERED:
            answer.set_result(self._read(place))
        elif what == EXPIRED:
            answer.set_exception(Expired("deadline", "passed in the queue", "queue"))
        else:
            assert what == FAILED, "nothing was withdrawn"
            answer.set_exception(EngineError("engine", "failed on this batch"))
        self.release([place])

    def release(self, places: list[int]) -> None:
        """Free places that the engine's process does not know of, or no longer."""
        self._states[places] = FREE
        self._free.extend(places)
        if len(self._free) == self._num_places:
            self.all_kept.set()

    def submit(self, place: int, image: UInt8Array) -> "asyncio.Future[Answer]":
        """Queue one uint8 RGB (S, S, 3), which is copied."""
        self._images[place] = image
        self._states[place] = WAITING
        self._open[place] = answer = self._loop.create_future()
        self._channel.send(place, SUBMIT)
        return answer

    def withdraw(self, place: int, answer: "asyncio.Future[Answer]") -> bool:
        """Give up an image; return whether it is in the engine."""
        if self._open.get(place) is not answer:
            return False  # its reply has come
        was_running = bool(self._states[place] == RUNNING)
        self._states[place] = DONE
        self._channel.send(place, WITHDRAW)
        return was_running

    def _read(self, place: int) -> Answer:
        at = self._number, place
        queue_s, inference_s = self._segment.seconds[at].tolist()
        logits = self._segment.logits[at].copy()
        order = top_k_indices(logits[None], len(logits))[0]
        return Answer(logits, softmax(logits), order, queue_s, inference_s)


class RemotePlaces:
    """Places for the images of one request, in front of the engine's process."""

    def __init__(self, promises: RemotePromises, places: list[int]) -> None:
        self._promises, self._unused = promises, places
        self.was_running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._promises.release(self._unused)
        self._unused = []

    async def run(self, image: UInt8Array) -> Answer:
        """Use a place and wait for the answer; raises what Places.run does."""
        place = self._unused.pop()
        answer = self._promises.submit(place, image)
        try:
            return await answer
        except asyncio.CancelledError:
            self.was_running |= self._promises.withdraw(place, answer)
            raise
