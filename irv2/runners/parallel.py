"""Several engines as one: each batch is split among them, one engine per GPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from irv2.runners.base import Runner
from irv2.types import FloatArray, UInt8Array

T = TypeVar("T")


class ParallelRunner(Runner):
    """Runs each batch in even parts on all engines at once, each in the thread that opened it.

    A batch takes as long as its slowest part. A failure of one engine fails the whole batch.
    """

    def __init__(self, openers: Sequence[Callable[[], Runner]]) -> None:
        """Call all openers at the same time: each opens the same artefact on another device.

        If one raises, the other engines are closed and its error is raised.
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
        self.backend, self.backend_version = first.backend, first.backend_version
        self.image_size, self.num_classes = first.image_size, first.num_classes
        self.num_engines = len(self._engines)
        self.num_threads = sum(engine.num_threads for _, engine in self._engines)
        self.max_batch = self.num_engines * first.max_batch
        self._first = first

    @property
    def metadata(self) -> dict[str, str]:
        """What the exporter wrote into the model file, which is the same for all engines."""
        return self._first.metadata

    def run(self, images: UInt8Array) -> FloatArray:
        """Map uint8 RGB (N, S, S, 3) to float32 logits (N, num_classes), in the images' order."""
        parts = np.array_split(images, self.num_engines)  # sizes differ by at most one
        running = [
            thread.submit(runner.run, part)
            for (thread, runner), part in zip(self._engines, parts, strict=True)
            if len(part)
        ]
        return np.concatenate(_results(running))

    def batch_memory(self, num_images: int) -> UInt8Array:
        """Allocate uint8 (num_images, S, S, 3) by the first engine; it suits the others equally."""
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
    """Return all results, or raise the first error, once none is running or reads its input."""
    wait(futures)
    return [future.result() for future in futures]
