"""The original's `.t7` file: its tree of Torch7 modules, matched with our network layer by layer.

The tree names no layer, so its layers are aligned with ours in their order, which is the same, by
what they are: a convolution's channels, kernel, stride and padding count, not only its shape. Max
pools take part, by their branch, though they have no weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from irv2.convert.importing.torch7 import Array, Torch7Object, load
from irv2.convert.importing.weights import PublishedWeights
from irv2.errors import CheckpointError
from irv2.images.preprocess import Preprocess
from irv2.model.build import build
from irv2.network_config import ModelConfig
from irv2.system.text import shortened

# Modules without weights that the original is made of; any other would change its answers.
PLAIN_MODULES = {
    "Identity",
    "CAddTable",
    "JoinTable",
    "MulConstant",
    "ReLU",
    "SpatialMaxPooling",
    "SpatialAveragePooling",
    "View",
    "Reshape",
    "Dropout",
}
# What these modules without weights must be set to, and what files older than a field meant.
FIXED: dict[str, dict[str, float]] = {
    "MulConstant": {"constant_scalar": 0.1},
    "SpatialMaxPooling": {
        "kH": 3,
        "kW": 3,
        "dH": 2,
        "dW": 2,
        "padH": 0,
        "padW": 0,
        "ceil_mode": False,
    },
    "SpatialAveragePooling": {"kH": 8, "kW": 8, "padH": 0, "padW": 0},
}
BEFORE_THE_FIELD = {"padH": 0, "padW": 0, "ceil_mode": False}
CONVOLUTIONS = {"SpatialConvolution", "SpatialConvolutionMM"}
CONTAINERS = {"Sequential", "ConcatTable", "DataParallelTable"}
FIELDS = {
    "convolution": ("weight",),
    "linear": ("weight", "bias"),
    "max pool": (),
    "batch norm": ("weight", "bias", "running_mean", "running_var"),
}
TRAINED = {"weight", "bias", "running_mean", "running_var", "running_std"}
CHANNELS = 2  # of a batch's dimensions, counted from 1
MAX_MODULES, MAX_MODULE_DEPTH = 10_000, 50  # the original has about 600, 8 deep
EXPECTED = "the original's Inception-ResNet-v2 as nn and cudnn modules"

Signature = tuple[str | int, ...]
Branch = tuple[int, int]  # of the nearest ConcatTable: which, of how many


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with weights, or a max pool: where it is and what it computes."""

    name: str
    signature: Signature
    module: Torch7Object | None = None  # None: one of ours, or a max pool


def read_original(path: Path) -> PublishedWeights:
    """The original's network in a Torch7 file; raises CheckpointError."""
    layers = list(_layers_of_file(path))
    _check_size(layers, path)
    linear = [layer for layer in layers if layer.signature[0] == "linear"]
    num_classes = int(linear[-1].signature[2]) if linear else 1000
    config = ModelConfig(num_classes=num_classes)
    ours = list(our_layers(config))
    pairs = _aligned(ours, layers)
    _check_pools(ours, layers, pairs, path)
    return PublishedWeights(
        kind="the original's Torch7 network",
        config=config,
        preprocess=Preprocess(),
        tensors={
            f"{layer.name}.{field}": tensor
            for layer in layers
            for field, tensor in _weights(layer, path)
        },
        names={
            f"{our_layer.name}.{field}": f"{layer.name}.{field}"
            for our_layer, layer in pairs
            for field in FIELDS[str(layer.signature[0])]
        },
    )


def our_layers(config: ModelConfig) -> Iterator[Layer]:
    """The layers of our network, in the order of the original's tree."""
    with torch.device("meta"):
        network = build(config)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            yield Layer(
                name,
                (
                    "convolution",
                    module.in_channels,
                    module.out_channels,
                    *module.kernel_size,
                    *module.stride,
                    *(int(padding) for padding in module.padding),
                ),
            )
        elif isinstance(module, nn.BatchNorm2d):
            yield Layer(name, ("batch norm", module.num_features))
        elif isinstance(module, nn.Linear):
            yield Layer(name, ("linear", module.in_features, module.out_features))
        elif isinstance(module, nn.MaxPool2d):  # each is a branch
            branches, _, index = name.rpartition(".")
            num_branches = len(list(network.get_submodule(branches).children()))
            yield Layer(name, ("max pool", int(index) + 1, num_branches))


def _aligned(ours: list[Layer], theirs: list[Layer]) -> list[tuple[Layer, Layer]]:
    """The layers that agree, in order."""
    matcher = SequenceMatcher(
        None,
        [layer.signature for layer in ours],
        [layer.signature for layer in theirs],
        autojunk=False,
    )
    return [
        (ours[block.a + i], theirs[block.b + i])
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]


def _check_size(layers: list[Layer], path: Path) -> None:
    """Refuse layers that name the same values again and again: copies would fill the memory."""
    num_bytes = sum(
        value.nbytes
        for layer in layers
        if layer.module
        for field, value in layer.module.fields.items()
        if field in TRAINED and isinstance(value, np.ndarray)
    )
    if num_bytes > path.stat().st_size:
        raise CheckpointError(path, "its layers share values with each other", EXPECTED)


def _check_pools(
    ours: list[Layer], theirs: list[Layer], pairs: list[tuple[Layer, Layer]], path: Path
) -> None:
    """Refuse max pools elsewhere than ours; other differences show in the weights."""
    agreed = {layer.name for pair in pairs for layer in pair}
    others = [layer for layer in (*theirs, *ours) if layer.name not in agreed]
    if others and all(layer.signature[0] == "max pool" for layer in others):
        names = shortened([layer.name for layer in others])
        raise CheckpointError(path, f"has max pools elsewhere than the network: {names}", EXPECTED)


def _layers_of_file(path: Path) -> Iterator[Layer]:
    for count, (name, module, branch) in enumerate(_modules(_network(load(path), path), "model")):
        if count > MAX_MODULES or name.count(".") > MAX_MODULE_DEPTH:  # a tree may contain itself
            raise CheckpointError(path, "modules without end", EXPECTED)
        kind = module.type_name.rpartition(".")[2]
        if kind in CONTAINERS | PLAIN_MODULES:
            _check_plain(kind, module.fields, name, path)
            if kind == "SpatialMaxPooling":
                yield Layer(name, ("max pool", *branch))
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
            path,
            "only names the files of a training state",
            "the file with the network",
            f"import {value['modelFile']}",
        )
    if isinstance(value, dict):
        value = value.get("model")
    if not isinstance(value, Torch7Object):
        raise CheckpointError(path, "a Torch7 file without a network", EXPECTED)
    return value


def _modules(
    module: Torch7Object, name: str, branch: Branch = (1, 1)
) -> Iterator[tuple[str, Torch7Object, Branch]]:
    """The tree in forward order; of a DataParallelTable the first replica alone."""
    yield name, module, branch
    children = module.fields.get("modules")
    if not isinstance(children, dict):
        return
    first_only = module.type_name == "nn.DataParallelTable"
    indices = [1.0] if first_only else sorted(i for i in children if isinstance(i, float))
    for number, index in enumerate(indices, 1):
        child = children.get(index)
        if isinstance(child, Torch7Object):
            forks = module.type_name == "nn.ConcatTable"
            inside = (number, len(indices)) if forks else branch
            yield from _modules(child, f"{name}.{index:g}", inside)


def _check_plain(kind: str, fields: dict[Any, Any], name: str, path: Path) -> None:
    if kind == "JoinTable" and _joined_dimension(fields) != CHANNELS:
        raise CheckpointError(path, f"{name} (JoinTable) does not join channels", EXPECTED)
    for field, value in FIXED.get(kind, {}).items():
        found = fields.get(field, BEFORE_THE_FIELD.get(field))
        if found != value:
            raise CheckpointError(path, f"{name} ({kind}) has {field} {found}", str(value))


def _joined_dimension(fields: dict[Any, Any]) -> object:
    """Of a batch's four dimensions, counted from 1; `nInputDims` 3 leaves the batch's out."""
    dimension = fields.get("dimension")
    if isinstance(dimension, float) and dimension < 0:
        return dimension + 5
    if isinstance(dimension, float) and fields.get("nInputDims") == 3:
        return dimension + 1
    return dimension


def _convolution(fields: dict[Any, Any], name: str, path: Path) -> Signature:
    padding = fields.get("padding", 0.0)  # both sides' in files older than padW and padH
    size_fields = ("nInputPlane", "nOutputPlane", "kH", "kW", "dH", "dW")
    sizes: list[Any] = [fields.get(field) for field in size_fields]
    paddings: list[Any] = [fields.get(field, padding) for field in ("padH", "padW")]
    if not all(_is_whole(n, 1) for n in sizes) or not all(_is_whole(n, 0) for n in paddings):
        raise CheckpointError(path, f"{name} does not say what it computes", EXPECTED)
    if fields.get("groups", 1.0) != 1:
        raise CheckpointError(path, f"{name} is a grouped convolution", EXPECTED)
    return ("convolution", *map(int, sizes), *map(int, paddings))


def _is_whole(number: object, least: int) -> bool:
    return isinstance(number, float) and number.is_integer() and number >= least


def _weights(layer: Layer, path: Path) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors of a layer, copied out of the file."""
    if layer.module is None:  # a max pool
        return
    fields, kind = layer.module.fields, layer.signature[0]
    weight = _array(fields, "weight", layer.name, path)
    if kind == "convolution":
        _, num_in, num_out, height, width, *_ = layer.signature
        shape = (int(num_out), int(num_in), int(height), int(width))
        if weight.shape == (shape[0], math.prod(shape[1:])):  # as SpatialConvolutionMM keeps it
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
    with np.errstate(divide="ignore", over="ignore"):  # what is not finite is refused with its name
        return np.asarray(inverse_std**-2 - eps)


def _array(fields: dict[Any, Any], field: str, name: str, path: Path) -> Array:
    array = fields.get(field)
    if not isinstance(array, np.ndarray):
        raise CheckpointError(path, f"{name} has no {field}", EXPECTED)
    return array


def _tensor(array: Array) -> Tensor:
    with np.errstate(over="ignore"):  # of float64: what is not finite is refused with its name
        return torch.from_numpy(np.array(array, np.float32))
