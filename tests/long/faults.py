"""Faults that exports have had, put into an honest one: what the gate is there to catch.

Each takes the ONNX model of an honest export and spoils it in place. Faults of an engine, which
depend on the batch, are runners around an honest one.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx

from irv2.runners.base import Runner
from irv2.types import FloatArray, UInt8Array

Fault = Callable[[onnx.ModelProto], None]


@contextmanager
def weight(model: onnx.ModelProto, name: str) -> Iterator[np.ndarray]:
    """A constant of the graph to be changed in place."""
    [initializer] = [value for value in model.graph.initializer if value.name == name]
    array = onnx.numpy_helper.to_array(initializer).copy()
    yield array
    initializer.CopyFrom(onnx.numpy_helper.from_array(array, name))


def names_of_weights(model: onnx.ModelProto) -> list[str]:
    """The convolutions and the classifier."""
    return [value.name for value in model.graph.initializer if value.name.endswith(".weight")]


def no_mean(model: onnx.ModelProto) -> None:
    """The mean is not subtracted."""
    with weight(model, "pixel_mean") as mean:
        mean[:] = 0


def mean_off_by(levels: float) -> Fault:
    """The mean is wrong by so many of 255 levels."""

    def fault(model: onnx.ModelProto) -> None:
        with weight(model, "pixel_mean") as mean:
            mean += levels

    return fault


def bgr(model: onnx.ModelProto) -> None:
    """The model takes BGR: first weights, mean and scale are for the reversed channels."""
    for name in ("pixel_mean", "pixel_scale"):
        with weight(model, name) as value:
            value[:] = value[:, ::-1].copy()
    with weight(model, "model.stem.0.0.weight") as first:
        first[:] = first[:, ::-1].copy()


def classes_swapped(model: onnx.ModelProto) -> None:
    """Two classes change places."""
    for name in ("model.classifier.weight", "model.classifier.bias"):
        with weight(model, name) as value:
            value[[1, 2]] = value[[2, 1]]


def classes_shifted(model: onnx.ModelProto) -> None:
    """Every class has its neighbour's place, as where one list has a background class."""
    for name in ("model.classifier.weight", "model.classifier.bias"):
        with weight(model, name) as value:
            value[:] = np.roll(value, 1, axis=0)


def block_perturbed(block: str, noise: float) -> Fault:
    """Noise on one block's weights, relative to their spread."""

    def fault(model: onnx.ModelProto) -> None:
        rng = np.random.default_rng(0)
        for name in names_of_weights(model):
            if f".{block}." in name:
                with weight(model, name) as value:
                    value += noise * value.std() * rng.standard_normal(value.shape, np.float32)

    return fault


def stale(older: onnx.ModelProto) -> Fault:
    """The weights are those of another epoch."""

    def fault(model: onnx.ModelProto) -> None:
        model.graph.CopyFrom(older.graph)

    return fault


def int8_weights(scale: float) -> Fault:
    """Weights in 8 bits; `scale` 1 is honest, below it they saturate, above it it is coarse."""

    def fault(model: onnx.ModelProto) -> None:
        for name in names_of_weights(model):
            with weight(model, name) as value:
                step = scale * np.abs(value).max() / 127
                value[:] = np.clip(np.round(value / step), -127, 127) * step

    return fault


def scaled(
    ranges: Mapping[str, tuple[float, float]], factor: float
) -> dict[str, tuple[float, float]]:
    """Activation ranges for int8: below 1 activations saturate, above it few levels are left."""
    return {name: (factor * low, factor * high) for name, (low, high) in ranges.items()}


class RowsMixedUp(Runner):
    """An engine that mixes up the rows of batches of some sizes."""

    def __init__(self, honest: Runner, sizes: Container[int]) -> None:
        self._honest, self._sizes = honest, sizes
        self.backend, self.max_batch = honest.backend, honest.max_batch
        self.image_size, self.num_classes = honest.image_size, honest.num_classes

    def run(self, images: UInt8Array) -> FloatArray:
        logits = self._honest.run(images)
        return np.roll(logits, 1, axis=0) if len(images) in self._sizes else logits
