"""TF-slim's network computed from tensors under their published names, by torch.nn.functional.

The forward pass is written out from the published layout (timm, Cadene, Keras) and makes each
tensor when it first meets its name, so that it is layout, weights and reference in one; it shares
no code with irv2. Below it, the files in which others ship such weights.
"""

import io
import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class SlimNetwork:
    """Random weights and their logits. Keras has no gamma: with `gamma` False it is 1."""

    def __init__(self, *, last: str, num_classes: int = 1000, gamma: bool = True, seed: int = 0):
        self.tensors: dict[str, Tensor] = {}
        self.units: list[str] = []  # convolutions with batch norm, in the order of the code
        self.last, self.num_classes, self.gamma = last, num_classes, gamma
        self.generator = torch.Generator().manual_seed(seed)

    def make(self, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = torch.empty(shape).uniform_(low, high, generator=self.generator)
        return self.tensors[name]

    def convolve(self, x: Tensor, name: str, channels: int, kernel, **options) -> Tensor:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        limit = (6 / (x.shape[1] * height * width)) ** 0.5
        weight = self.make(f"{name}.weight", (channels, x.shape[1], height, width), -limit, limit)
        return F.conv2d(x, weight, **options)

    def unit(
        self,
        x: Tensor,
        name: str,
        channels: int,
        kernel,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> Tensor:
        """Convolution, batch norm with eps 1e-3, ReLU."""
        if name not in self.units:
            self.units.append(name)
        x = self.convolve(x, f"{name}.conv", channels, kernel, stride=stride, padding=padding)
        low, high = (0.8, 1.2) if self.gamma else (1, 1)
        gamma = self.make(f"{name}.bn.weight", (channels,), low, high)
        beta = self.make(f"{name}.bn.bias", (channels,), -0.2, 0.2)
        mean = self.make(f"{name}.bn.running_mean", (channels,), -0.2, 0.2)
        variance = self.make(f"{name}.bn.running_var", (channels,), 0.5, 1.5)
        self.tensors.setdefault(f"{name}.bn.num_batches_tracked", torch.tensor(1000))
        scale = gamma / (variance + 1e-3).sqrt()
        return (x * scale[:, None, None] + (beta - mean * scale)[:, None, None]).clamp(min=0)

    def chain(self, x: Tensor, name: str, *layers: tuple) -> Tensor:
        """Units one after the other, named name.0, name.1, ..."""
        for i, layer in enumerate(layers):
            x = self.unit(x, f"{name}.{i}", *layer)
        return x

    def residual(self, x: Tensor, name: str, scale: float, branches: list[Tensor]) -> Tensor:
        joined = torch.cat(branches, 1)
        up = self.convolve(joined, f"{name}.conv2d", x.shape[1], 1)
        bias = self.make(f"{name}.conv2d.bias", (x.shape[1],), -0.1, 0.1)
        return x + scale * (up + bias[:, None, None])

    def block35(self, x: Tensor, name: str) -> Tensor:
        branches = [
            self.unit(x, f"{name}.branch0", 32, 1),
            self.chain(x, f"{name}.branch1", (32, 1), (32, 3, 1, 1)),
            self.chain(x, f"{name}.branch2", (32, 1), (48, 3, 1, 1), (64, 3, 1, 1)),
        ]
        return self.residual(x, name, 0.17, branches).clamp(min=0)

    def block17(self, x: Tensor, name: str) -> Tensor:
        branches = [
            self.unit(x, f"{name}.branch0", 192, 1),
            self.chain(x, f"{name}.branch1", (128, 1), (160, (1, 7), 1, (0, 3)),
                       (192, (7, 1), 1, (3, 0))),
        ]  # fmt: skip
        return self.residual(x, name, 0.10, branches).clamp(min=0)

    def block8(self, x: Tensor, name: str, scale: float) -> Tensor:
        branches = [
            self.unit(x, f"{name}.branch0", 192, 1),
            self.chain(x, f"{name}.branch1", (192, 1), (224, (1, 3), 1, (0, 1)),
                       (256, (3, 1), 1, (1, 0))),
        ]  # fmt: skip
        return self.residual(x, name, scale, branches)

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Normalised float (N, 3, 299, 299) -> (N, num_classes)."""
        x = self.unit(x, "conv2d_1a", 32, 3, 2)
        x = self.unit(x, "conv2d_2a", 32, 3)
        x = self.unit(x, "conv2d_2b", 64, 3, 1, 1)
        x = F.max_pool2d(x, 3, 2)
        x = self.unit(x, "conv2d_3b", 80, 1)
        x = self.unit(x, "conv2d_4a", 192, 3)
        x = F.max_pool2d(x, 3, 2)
        neighbours = F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, 1, 1)  # padding does not count
        averaged = F.avg_pool2d(x, 3, 1, 1) / neighbours
        x = torch.cat([
            self.unit(x, "mixed_5b.branch0", 96, 1),
            self.chain(x, "mixed_5b.branch1", (48, 1), (64, 5, 1, 2)),
            self.chain(x, "mixed_5b.branch2", (64, 1), (96, 3, 1, 1), (96, 3, 1, 1)),
            self.unit(averaged, "mixed_5b.branch3.1", 64, 1),
        ], 1)  # fmt: skip
        for i in range(10):
            x = self.block35(x, f"repeat.{i}")
        x = torch.cat([
            self.unit(x, "mixed_6a.branch0", 384, 3, 2),
            self.chain(x, "mixed_6a.branch1", (256, 1), (256, 3, 1, 1), (384, 3, 2)),
            F.max_pool2d(x, 3, 2),
        ], 1)  # fmt: skip
        for i in range(20):
            x = self.block17(x, f"repeat_1.{i}")
        x = torch.cat([
            self.chain(x, "mixed_7a.branch0", (256, 1), (384, 3, 2)),
            self.chain(x, "mixed_7a.branch1", (256, 1), (288, 3, 2)),
            self.chain(x, "mixed_7a.branch2", (256, 1), (288, 3, 1, 1), (320, 3, 2)),
            F.max_pool2d(x, 3, 2),
        ], 1)  # fmt: skip
        for i in range(9):
            x = self.block8(x, f"repeat_2.{i}", 0.20).clamp(min=0)
        x = self.block8(x, "block8", 1.0)
        x = self.unit(x, "conv2d_7b", 1536, 1).mean((2, 3))
        weight = self.make(f"{self.last}.weight", (self.num_classes, 1536), -0.05, 0.05)
        bias = self.make(f"{self.last}.bias", (self.num_classes,), -0.1, 0.1)
        return x @ weight.T + bias


Layers = dict[str, dict[str, np.ndarray]]


def keras_layers(network: SlimNetwork) -> Layers:
    """Keras' layers with their variables, in the order in which they are made."""
    tensors, layers = network.tensors, {}

    def kernel(name: str) -> np.ndarray:
        weight = tensors[f"{name}.weight"].numpy()
        return np.ascontiguousarray(weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T)

    for number, name in enumerate(network.units):
        head, suffix = name == "conv2d_7b", f"_{number}" if number else ""  # the first has none
        layers["conv_7b" if head else f"conv2d{suffix}"] = {"kernel": kernel(f"{name}.conv")}
        layers["conv_7b_bn" if head else f"batch_normalization{suffix}"] = {
            "beta": tensors[f"{name}.bn.bias"].numpy(),
            "moving_mean": tensors[f"{name}.bn.running_mean"].numpy(),
            "moving_variance": tensors[f"{name}.bn.running_var"].numpy(),
        }
    blocks = {f"repeat.{i}": f"block35_{i + 1}" for i in range(10)}
    blocks |= {f"repeat_1.{i}": f"block17_{i + 1}" for i in range(20)}
    blocks |= {f"repeat_2.{i}": f"block8_{i + 1}" for i in range(9)} | {"block8": "block8_10"}
    for name, block in blocks.items():
        bias = tensors[f"{name}.conv2d.bias"].numpy()
        layers[f"{block}_conv"] = {"kernel": kernel(f"{name}.conv2d"), "bias": bias}
    last = {"kernel": kernel(network.last), "bias": tensors[f"{network.last}.bias"].numpy()}
    return layers | {"predictions": last}


def write_keras_2(path: Path, layers: Layers) -> Path:
    """`model.save_weights("x.h5")` of Keras 1 and 2, in a session that had made 94 layers."""

    def later(name: str) -> str:
        kind, number = re.fullmatch(r"(.*?)_?(\d*)", name).groups()
        unnamed = kind in ("conv2d", "batch_normalization")
        return f"{kind}_{int(number or 0) + 94}" if unnamed else name

    layers = {later(name): variables for name, variables in layers.items()}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in ["input_1", *layers]]
        file.create_group("input_1").attrs["weight_names"] = []
        for name, variables in layers.items():
            group = file.create_group(name)
            names = {variable: f"{name}/{variable}:0" for variable in variables}
            group.attrs["weight_names"] = [text.encode() for text in names.values()]
            for variable, array in variables.items():
                group[names[variable]] = array
    return path


def write_keras_3(
    file: Path | io.BytesIO, layers: Layers, *, named: bool, order: list[str] | None = None
) -> None:
    """`model.save_weights("x.weights.h5")` of Keras 3, of a model with its layers in this `order`.

    Groups are counted per class in that order, which is not that of the names; late versions note
    the layer's name.
    """
    if order is None:
        order = list(layers)
        np.random.default_rng(0).shuffle(order)
    counts: dict[str, int] = {}
    with h5py.File(file, "w") as hdf5:
        for name in order:
            snake = {
                "BatchNormalization": "batch_normalization",
                "Conv2D": "conv2d",
                "Dense": "dense",
            }[keras_class(name, layers)]
            number = counts[snake] = counts.get(snake, -1) + 1
            group = hdf5.create_group(f"layers/{snake}_{number}" if number else f"layers/{snake}")
            variables = group.create_group("vars")
            if named:
                variables.attrs["name"] = name
            for i, array in enumerate(layers[name].values()):
                variables[str(i)] = array


def keras_class(name: str, layers: Layers) -> str:
    arrays = list(layers[name].values())
    if len(arrays) == 3:
        return "BatchNormalization"
    return "Dense" if len(arrays) == 2 and arrays[0].ndim == 2 else "Conv2D"


def write_keras_archive(path: Path, layers: Layers, model: dict | None = None) -> Path:
    """`model.save("x.keras")` of early Keras 3; without a `model`, of the layers alone."""
    if model is None:
        entries = [
            {"class_name": keras_class(name, layers), "config": {"name": name}} for name in layers
        ]
        model = {"class_name": "Functional", "config": {"layers": entries}}
    names = [entry["config"]["name"] for entry in model["config"]["layers"]]
    stream = io.BytesIO()
    order = [name for name in names if name in layers]
    write_keras_3(stream, layers, named=False, order=order)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", stream.getvalue())
    return path
