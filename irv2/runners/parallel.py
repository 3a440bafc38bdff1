"""Several engines as one: each batch is split among them, one engine per GPU."""

from collections.abc import Callable, Iterator, Sequence
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
        running = [
            thread.submit(runner.run, images[part]) for thread, runner, part in self._parts(images)
        ]
        return np.concatenate(_results(running))

    def run_gathered(self, images: Sequence[UInt8Array]) -> FloatArray:
        """Do the same for images that lie apart: each engine fetches its own."""
        running = [
            thread.submit(runner.run_gathered, images[part])
            for thread, runner, part in self._parts(images)
        ]
        return np.concatenate(_results(running))

    def register(self, images: UInt8Array) -> None:
        """Register the memory with the first engine, for all of them: once is enough for CUDA."""
        thread, first = self._engines[0]
        thread.submit(first.register, images).result()
        self.gathers = first.gathers

    def _parts(
        self, images: Sequence[UInt8Array] | UInt8Array
    ) -> Iterator[tuple[ThreadPoolExecutor, Runner, slice]]:
        """Give each engine an even part, as far as the images go; sizes differ by at most one."""
        ends = [-(-len(images) * (i + 1) // self.num_engines) for i in range(self.num_engines)]
        for (thread, runner), start, end in zip(self._engines, [0, *ends], ends, strict=False):
            if start < end:
                yield thread, runner, slice(start, end)

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
