"""The interface of an engine, as used by the gate, the evaluation and the server."""

from abc import ABC, abstractmethod
from typing import Self

import numpy as np

from irv2.types import FloatArray, UInt8Array

# The largest batch that a server makes on a CPU, unless told otherwise: beyond this a CPU gains
# nothing from larger batches, and requests only wait longer.
CPU_MAX_BATCH = 8


class Runner(ABC):
    """Maps a batch of preprocessed images to logits.

    A runner is a context manager. `run` may be called from any thread, but one at a time.
    """

    backend: str  # the library and device, e.g. "onnxruntime-cpu"
    image_size: int  # S: images are (N, S, S, 3)
    num_classes: int
    max_batch: int  # the largest N of `run`
    num_engines: int = 1  # among which each batch is split
    num_threads: int = 0  # that compute on the CPU

    @abstractmethod
    def run(self, images: UInt8Array) -> FloatArray:
        """Map uint8 RGB (N, S, S, 3), 1 <= N <= max_batch, to float32 logits (N, num_classes).

        Raises EngineError if the engine fails.
        """

    def batch_memory(self, num_images: int) -> UInt8Array:
        """Allocate uint8 (num_images, S, S, 3), the memory from which `run` reads fastest.

        It must not be used after `close`.
        """
        return np.empty((num_images, self.image_size, self.image_size, 3), np.uint8)

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
