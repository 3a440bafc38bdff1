"""The batcher under a clock and an engine that the test controls: no thread, no real time."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from irv2.errors import EngineError
from irv2.runners.base import Runner
from irv2.serve.pipeline.admission import Admission, LocalPromises
from irv2.serve.pipeline.batcher import Answer, Batcher

SIDE = 2


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        live = [timer for timer in self._scheduled if not timer._cancelled]
        if not self._ready and live:
            self.now = max(self.now, heapq.nsmallest(1, live)[0]._when)
        super()._run_once()


class FakeRunner(Runner):
    """Answers each image with its own number; fails on the batches that `fails` picks."""

    backend, image_size, num_classes, max_batch = "fake", SIDE, 3, 8

    def __init__(self, num_streams: int = 1) -> None:
        self.num_streams = num_streams
        self.batches: list[list[int]] = []
        self.fails: Callable[[list[int]], bool] = lambda numbers: False

    def run(self, images):
        numbers = [int(image[0, 0, 0]) for image in images]
        self.batches.append(numbers)
        if self.fails(numbers):
            raise EngineError("fake", "was told to fail")
        return np.repeat(np.array(numbers, np.float32)[:, None], 3, axis=1)


class FakeEngine(Executor):
    """Takes `seconds(batch size)` of the virtual clock for each call, `num_streams` at a time."""

    def __init__(self, seconds: Callable[[int], float], num_streams: int = 1) -> None:
        self.seconds, self.num_idle = seconds, num_streams
        self.starts: list[float] = []  # in the order of the runner's batches, as they end
        self.was_overwritten = False  # whether a batch changed while it ran

    def submit(self, run, images):
        assert self.num_idle > 0, "more batches at a time than streams"
        future, loop, given = Future(), asyncio.get_running_loop(), images.copy()
        self.num_idle -= 1
        started_at = loop.time()

        def done():
            self.num_idle += 1
            self.starts.append(started_at)
            self.was_overwritten |= bool((images != given).any())
            try:
                future.set_result(run(images))
            except Exception as error:
                future.set_exception(error)

        loop.call_later(self.seconds(len(images)), done)
        return future


class Bench:
    """Admission and batcher with their fakes; `ask` submits the image of that number."""

    def __init__(
        self,
        seconds: Callable[[int], float] = lambda size: 0.1,
        max_batch=4,
        max_queue=100,
        prepare_s: Callable[[int], float] = lambda num_images: 0.0,
        num_streams=1,
        **options,
    ):
        self.runner, self.engine = FakeRunner(num_streams), FakeEngine(seconds, num_streams)
        self.loop = asyncio.get_running_loop()
        batcher = Batcher(self.runner, max_batch=max_batch, engine=self.engine, **options)
        promises = LocalPromises(batcher)
        self.batcher = batcher
        self.admission = Admission(batcher, promises, max_queue, prepare_s)

    async def warm_up(self, sizes: Iterable[int]) -> None:
        """Batches of these sizes on all streams, so that their times are known at once."""
        for size in sizes:
            await self.batcher.run_apart(np.zeros((size, SIDE, SIDE, 3), np.uint8))

    async def ask(self, number: int, timeout_s: float = 60.0) -> Answer:
        with self.admission.admit(1, self.loop.time() + timeout_s) as places:
            return await places.run(image(number))

    def ask_later(self, number: int, timeout_s: float = 60.0) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.ask(number, timeout_s))


def image(number: int) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), number, np.uint8)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario)
