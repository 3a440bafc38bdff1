"""The interface of an engine, as used by the gate, the evaluation and the server."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np

from irv2.system.ahead import map_ahead
from irv2.types import FloatArray, UInt8Array

# Beyond this a CPU gains nothing from larger batches, and requests only wait longer.
CPU_MAX_BATCH = 8


class Runner(ABC):
    """Maps a batch of preprocessed images to logits.

    A runner is a context manager. `run` may be called from any thread, and from `num_streams`
    threads at once. That many calls together reach every stream, if no other call is made.
    """

    backend: str  # the library and device, e.g. "onnxruntime-cpu"
    backend_version: str = ""  # of the library
    image_size: int  # S: images are (N, S, S, 3)
    num_classes: int
    max_batch: int  # the largest N of `run`
    num_engines: int = 1  # among which each batch is split
    num_threads: int = 0  # that compute on the CPU
    num_streams: int = 1  # each runs a batch of its own, on its part of the cores
    part_sizes: tuple[int, ...] = ()  # of the parts that it makes of each batch, if it does
    gathers: bool = False  # whether it fetches images from where each lies; see `register`

    @property
    def usual_batch(self) -> int:
        """The largest batch that a server makes, unless told otherwise.

        On a CPU that is a part, where batches are run in parts: twice as many images would be
        answered when the last of them is, and meanwhile fewer clients would have new ones ready.
        """
        if self.backend.endswith("-cpu"):
            return min(self.max_batch, max(self.part_sizes, default=CPU_MAX_BATCH))
        return self.max_batch

    @abstractmethod
    def run(self, images: UInt8Array) -> FloatArray:
        """Map uint8 RGB (N, S, S, 3), 1 <= N <= max_batch, to float32 logits (N, num_classes).

        Raises EngineError if the engine fails.
        """

    def run_all(self, images: UInt8Array, batch_size: int) -> FloatArray:
        """Map any number of images in batches of at most `batch_size`, on all streams at once."""
        size = min(batch_size, self.max_batch, -(-len(images) // self.num_streams))
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate(list(self.map(parts)))

    def map(self, batches: Iterable[UInt8Array]) -> Iterator[FloatArray]:
        """Yield the logits of batches in their order, as many at once as there are streams."""
        if self.num_streams == 1:
            yield from map(self.run, batches)
            return
        with ThreadPoolExecutor(self.num_streams) as pool:
            yield from map_ahead(pool, self.run, batches, self.num_streams)

    def batch_memory(self, num_images: int) -> UInt8Array:
        """Allocate uint8 (num_images, S, S, 3), the memory from which `run` reads fastest.

        It must not be used after `close`.
        """
        return np.empty((num_images, self.image_size, self.image_size, 3), np.uint8)

    def register(self, images: UInt8Array) -> None:  # noqa: B027 (a CPU reads any memory)
        """Prepare for batches of images that all lie in this memory, uint8 (..., S, S, 3).

        A GPU may then fetch each by itself: `gathers` is set, and `run_gathered` takes them.
        """

    def run_gathered(self, images: Sequence[UInt8Array]) -> FloatArray:
        """Like `run`, for images (S, S, 3) that each lie somewhere in the registered memory."""
        return self.run(np.stack(images))

    @property
    def metadata(self) -> dict[str, str]:
        """What the exporter wrote into the model file; empty if the format has no metadata."""
        return {}

    def close(self) -> None:  # noqa: B027 (most engines are freed with their object)
        """Free the engine; the runner must not be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def usual_sizes(max_batch: int) -> list[int]:
    """List 1, 2, 4, ... and `max_batch`."""
    return sorted({*(2**i for i in range(max_batch.bit_length())), max_batch})
