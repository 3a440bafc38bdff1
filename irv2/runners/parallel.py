"""Several engines as one: a batch is split over them, each on a GPU of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from irv2.runners.base import Runner
from irv2.types import FloatArray, UInt8Array

T = TypeVar("T")


class ParallelRunner(Runner):
    """Runs each batch on all engines at once, in even parts, each in the thread that opened it.

    A batch takes as long as its slowest part. What fails on one engine fails for the batch.
    """

    def __init__(self, openers: Sequence[Callable[[], Runner]]) -> None:
        """Each opener opens the same artefact, on another device, all at the same time.

        Where one raises, the others are closed and its error is raised.
        """
        self._threads = [ThreadPoolExecutor(1, f"engine{i}") for i in range(len(openers))]
        opening = [
            thread.submit(opener) for thread, opener in zip(self._threads, openers, strict=True)
        ]
        wait(opening)
        self._engines = [
            (thread, opened.result())
            for thread, opened in zip(self._threads, opening, strict=True)
            if opened.exception() is None
        ]
        if len(self._engines) < len(openers):
            self.close()
        first, *_ = _results(opening)
        self.backend = first.backend
        self.image_size, self.num_classes = first.image_size, first.num_classes
        self.num_engines = len(self._engines)
        self.max_batch = self.num_engines * first.max_batch
        self._first = first

    @property
    def metadata(self) -> dict[str, str]:
        """The model file's, which is the same for all."""
        return self._first.metadata

    def run(self, images: UInt8Array) -> FloatArray:
        """uint8 RGB (N, S, S, 3) -> float32 logits (N, num_classes), the images' order kept."""
        parts = np.array_split(images, self.num_engines)  # of sizes that differ by one at most
        running = [
            thread.submit(runner.run, part)
            for (thread, runner), part in zip(self._engines, parts, strict=True)
            if len(part)
        ]
        return np.concatenate(_results(running))

    def batch_memory(self, num_images: int) -> UInt8Array:
        """uint8 (num_images, S, S, 3) of the first engine, which is as good for the others."""
        thread, runner = self._engines[0]
        return thread.submit(runner.batch_memory, num_images).result()

    def close(self) -> None:
        """Free every engine in its thread, then the threads."""
        try:
            _results([thread.submit(runner.close) for thread, runner in self._engines])
        finally:
            for thread in self._threads:
                thread.shutdown()


def _results(futures: Sequence[Future[T]]) -> list[T]:
    """All results, or the first error, once all have ended: none reads its input any more."""
    wait(futures)
    return [future.result() for future in futures]
