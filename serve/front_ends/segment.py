"""Memory that the engine's process and its front ends share: images, answers, promises, figures.

It has no name in any file system, so nothing is left to clean up, whatever ends: it is freed with
the last process that has it. Each front end has places of its own, so none needs a lock: a place
has one writer at a time, and a single number is never seen half written.
"""

import mmap
import os
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from irv2.serve.operations.metrics import Sums
from irv2.types import Float64Array, FloatArray, IntArray, UInt8Array
from irv2.v1 import classifier_pb2

# What a place holds. The engine's process writes RUNNING and DONE, the front end the others; those
# that are PREPARING, WAITING or RUNNING are promises.
FREE, PREPARING, WAITING, RUNNING, DONE = range(5)
# A place whose request was given up is free again once the engine's process has said so. Twice as
# many as may have promises are enough for that.
PLACES_PER_PROMISE = 2
_ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is needed to read the memory of one model."""

    num_front_ends: int
    num_places: int  # of each front end
    image_shape: tuple[int, int, int]
    num_classes: int
    max_batch: int
    num_streams: int
    description_bytes: int
    artifact_file: str


class Segment:
    """The arrays in the memory. Those of places are indexed by front end and place."""

    def __init__(self, layout: Layout, descriptor: int) -> None:
        """Map the memory; whoever has opened the descriptor closes it."""
        self.layout = layout
        self._memory = mmap.mmap(descriptor, _num_bytes(layout))
        self._at = 0
        streams, sizes = layout.num_streams, layout.max_batch + 1
        places = layout.num_front_ends, layout.num_places
        self.states: UInt8Array = self._array(np.uint8, *places)
        self.deadlines: Float64Array = self._array(np.float64, *places)
        self.seconds: Float64Array = self._array(np.float64, *places, 2)  # queue, inference
        self.images: UInt8Array = self._array(np.uint8, *places, *layout.image_shape)
        self.logits: FloatArray = self._array(np.float32, *places, layout.num_classes)
        self.free_at: Float64Array = self._array(np.float64, streams)  # of each stream, sorted
        self.num_ending: IntArray = self._array(np.int64, 1)
        self.predicted_s: Float64Array = self._array(np.float64, sizes)  # by size of the batch
        self.fastest_s: Float64Array = self._array(np.float64, sizes)
        shapes = Sums.shapes(layout.num_front_ends, layout.max_batch)
        self.sums = Sums(*(self._array(np.int64, *shape) for shape in shapes))
        self._description: UInt8Array = self._array(np.uint8, layout.description_bytes)

    @classmethod
    def create(
        cls,
        model: classifier_pb2.Model,
        artifact_file: str,
        image_shape: tuple[int, int, int],
        *,
        num_streams: int,
        num_front_ends: int,
        max_queue: int,
    ) -> tuple[Self, int]:
        """Make the memory of a model; return it and its descriptor, to be closed by the caller."""
        description = model.SerializeToString()
        layout = Layout(
            num_front_ends=num_front_ends,
            num_places=PLACES_PER_PROMISE * max_queue,
            image_shape=image_shape,
            num_classes=len(model.classes),
            max_batch=model.max_batch,
            num_streams=num_streams,
            description_bytes=len(description),
            artifact_file=artifact_file,
        )
        descriptor = os.memfd_create("irv2", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _num_bytes(layout))  # takes no memory before it is written to
        segment = cls(layout, descriptor)
        segment._description[:] = np.frombuffer(description, np.uint8)
        return segment, descriptor

    @property
    def description(self) -> classifier_pb2.Model:
        """The model whose memory it is."""
        return classifier_pb2.Model.FromString(self._description.tobytes())

    def _array(self, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
        """The next array of the memory."""
        array = np.frombuffer(self._memory, dtype, prod(shape), self._at).reshape(shape)
        self._at += _aligned(array.nbytes)
        return array


def _num_bytes(layout: Layout) -> int:
    num_places = layout.num_front_ends * layout.num_places
    place = 1 + 8 + 2 * 8 + prod(layout.image_shape) + 4 * layout.num_classes
    sums = sum(map(prod, Sums.shapes(layout.num_front_ends, layout.max_batch)))
    figures = 8 * (layout.num_streams + 1 + 2 * (layout.max_batch + 1) + sums)
    num_arrays = 13
    return num_places * place + figures + layout.description_bytes + num_arrays * _ALIGNMENT


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
