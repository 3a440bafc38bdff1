"""The original's `.t7` file: its tree of Torch7 modules, matched with our network layer by layer.

The tree names no layer, so its layers are aligned with ours in their order, which is the same, by
what they are: a convolution's channels, kernel, stride and padding count, not only its shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convert.importing.source import Source
from convert.importing.torch7 import Array, Torch7Object, load
from irv2.errors import CheckpointError
from irv2.model import ModelConfig
from irv2.networks import build
from irv2.preprocess import Preprocess

# Modules without weights that the original is made of; any other would change its answers.
PLAIN_MODULES = {
    "Identity", "CAddTable", "JoinTable", "MulConstant", "ReLU", "SpatialMaxPooling",
    "SpatialAveragePooling", "View", "Reshape", "Dropout",
}  # fmt: skip
# What these modules without weights must be set to.
FIXED = {
    "MulConstant": {"constant_scalar": 0.1},
    "SpatialMaxPooling": {"kH": 3.0, "kW": 3.0, "dH": 2.0, "dW": 2.0},
}
CONVOLUTIONS = {"SpatialConvolution", "SpatialConvolutionMM"}
CONTAINERS = {"Sequential", "ConcatTable", "DataParallelTable"}
MAX_MODULES, MAX_MODULE_DEPTH = 10_000, 50  # the original has about 600, 8 deep
EXPECTED = "the original's Inception-ResNet-v2 as nn and cudnn modules"

Signature = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with weights: where it is and what it computes."""

    name: str
    signature: Signature
    module: Torch7Object | None = None  # None: one of ours


def read_original(path: Path) -> Source:
    """The original's network in a Torch7 file; raises CheckpointError."""
    layers = list(_layers_of_file(path))
    linear = [layer for layer in layers if layer.signature[0] == "linear"]
    num_classes = int(linear[-1].signature[2]) if linear else 1000
    config = ModelConfig(num_classes=num_classes)
    tensors = {
        f"{layer.name}.{field}": tensor
        for layer in layers
        for field, tensor in _weights(layer, path)
    }
    return Source(
        kind="a Torch7 network", config=config, preprocess=Preprocess(), tensors=tensors,
        names=_names(list(our_layers(config)), layers),
    )  # fmt: skip


def our_layers(config: ModelConfig) -> Iterator[Layer]:
    """The layers with weights of our network, in the order of the original's tree."""
    with torch.device("meta"):
        network = build(config)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            yield Layer(
                name,
                ("convolution", module.in_channels, module.out_channels, *module.kernel_size,
                 *module.stride, *(int(padding) for padding in module.padding)),
            )  # fmt: skip
        elif isinstance(module, nn.BatchNorm2d):
            yield Layer(name, ("batch norm", module.num_features))
        elif isinstance(module, nn.Linear):
            yield Layer(name, ("linear", module.in_features, module.out_features))


def _names(ours: list[Layer], theirs: list[Layer]) -> dict[str, str]:
    """Our tensors' names to the file's, where the layers agree."""
    fields = {"convolution": ("weight",), "linear": ("weight", "bias"),
              "batch norm": ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    matcher = SequenceMatcher(
        None, [layer.signature for layer in ours], [layer.signature for layer in theirs],
        autojunk=False,
    )  # fmt: skip
    return {
        f"{ours[block.a + i].name}.{field}": f"{theirs[block.b + i].name}.{field}"
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
        for field in fields[str(ours[block.a + i].signature[0])]
    }


def _layers_of_file(path: Path) -> Iterator[Layer]:
    for count, (name, module) in enumerate(_modules(_network(load(path), path), "model")):
        if count > MAX_MODULES or name.count(".") > MAX_MODULE_DEPTH:  # a tree may contain itself
            raise CheckpointError(path, "modules without end", EXPECTED)
        kind = module.type_name.rpartition(".")[2]
        if kind in CONTAINERS | PLAIN_MODULES:
            _check_plain(kind, module, name, path)
        elif kind in CONVOLUTIONS:
            yield Layer(name, _convolution(module.fields, name, path), module)
        elif kind == "SpatialBatchNormalization":
            size = _array(module.fields, "running_mean", name, path).size
            yield Layer(name, ("batch norm", size), module)
        elif kind == "Linear":
            weight = _array(module.fields, "weight", name, path)
            if weight.ndim != 2:
                raise CheckpointError(path, f"{name}.weight has {weight.ndim} dimensions", "2")
            yield Layer(name, ("linear", weight.shape[1], weight.shape[0]), module)
        else:
            raise CheckpointError(
                path, f"{name} is a {module.type_name}, which the network does not have", EXPECTED
            )


def _network(value: Any, path: Path) -> Torch7Object:  # noqa: ANN401 (what a file holds)
    """The network in a file: the value itself, or what a table calls `model`."""
    if isinstance(value, dict) and isinstance(value.get("modelFile"), str):
        raise CheckpointError(
            path, "only names the files of a training state", "the file with the network",
            f"import {value['modelFile']}",
        )  # fmt: skip
    if isinstance(value, dict):
        value = value.get("model")
    if not isinstance(value, Torch7Object):
        raise CheckpointError(path, "a Torch7 file without a network", EXPECTED)
    return value


def _modules(module: Torch7Object, name: str) -> Iterator[tuple[str, Torch7Object]]:
    """The tree in forward order; of a DataParallelTable the first replica alone."""
    yield name, module
    children = module.fields.get("modules")
    if not isinstance(children, dict):
        return
    first_only = module.type_name == "nn.DataParallelTable"
    for index in [1.0] if first_only else sorted(i for i in children if isinstance(i, float)):
        child = children.get(index)
        if isinstance(child, Torch7Object):
            yield from _modules(child, f"{name}.{index:g}")


def _check_plain(kind: str, module: Torch7Object, name: str, path: Path) -> None:
    for field, value in FIXED.get(kind, {}).items():
        found = module.fields.get(field)
        if found != value:
            raise CheckpointError(path, f"{name} ({kind}) has {field} {found}", f"{value:g}")


def _convolution(fields: dict[Any, Any], name: str, path: Path) -> Signature:
    padding = fields.get("padding", 0.0)  # both sides' in files older than padW and padH
    numbers = [
        fields.get("nInputPlane"), fields.get("nOutputPlane"), fields.get("kH"), fields.get("kW"),
        fields.get("dH"), fields.get("dW"), fields.get("padH", padding),
        fields.get("padW", padding), fields.get("groups", 1.0),
    ]  # fmt: skip
    if not all(isinstance(number, float) and number.is_integer() for number in numbers):
        raise CheckpointError(path, f"{name} does not say what it computes", EXPECTED)
    if numbers.pop() != 1:
        raise CheckpointError(path, f"{name} is a grouped convolution", EXPECTED)
    return ("convolution", *(int(number) for number in numbers))


def _weights(layer: Layer, path: Path) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors of a layer, copied out of the file."""
    assert layer.module is not None
    fields, kind = layer.module.fields, layer.signature[0]
    weight = _array(fields, "weight", layer.name, path)
    if kind == "convolution":
        _, num_in, num_out, height, width, *_ = layer.signature
        shape = (int(num_out), int(num_in), int(height), int(width))
        if weight.size == np.prod(shape):  # SpatialConvolutionMM keeps a matrix
            weight = weight.reshape(shape)
        bias = fields.get("bias")
        if isinstance(bias, np.ndarray) and bias.any():  # older cudnn keeps one, of zeros
            yield "bias", _tensor(bias)
    else:
        yield "bias", _tensor(_array(fields, "bias", layer.name, path))
    yield "weight", _tensor(weight)
    if kind == "batch norm":
        yield "running_mean", _tensor(_array(fields, "running_mean", layer.name, path))
        yield "running_var", _tensor(_variance(fields, layer.name, path))


def _variance(fields: dict[Any, Any], name: str, path: Path) -> Array:
    """The running variance; very old files keep 1 / sqrt(variance + eps) as running_std."""
    eps = fields.get("eps")
    if not isinstance(eps, float) or not np.isclose(eps, 1e-5, rtol=1e-3, atol=0):
        raise CheckpointError(path, f"{name} has eps {eps}", "1e-5")
    if isinstance(fields.get("running_var"), np.ndarray):
        return _array(fields, "running_var", name, path)
    inverse_std = _array(fields, "running_std", name, path).astype(np.float64)
    with np.errstate(divide="ignore"):  # what is not finite is refused with its name
        return np.asarray(inverse_std**-2 - eps)


def _array(fields: dict[Any, Any], field: str, name: str, path: Path) -> Array:
    array = fields.get(field)
    if not isinstance(array, np.ndarray):
        raise CheckpointError(path, f"{name} has no {field}", EXPECTED)
    return array


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
