"""Keras' InceptionResNetV2, from its HDF5 files: `.h5` of any age, `.weights.h5` and `.keras`.

Read with h5py alone. Keras numbers its unnamed layers in the order in which they were made, from
wherever the session stood; that order is our network's. Its batch norm has no gamma.
"""

import json
import mmap
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from irv2.convert.importing.weights import SLIM_PREPROCESS, PublishedWeights, shortened
from irv2.errors import CheckpointError
from irv2.model.build import build
from irv2.model.paper import ConvBN
from irv2.model.slim import SlimConfig
from irv2.system.stop import raise_if_stopped

CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # in a .keras archive
# Members of an archive, unpacked; the published network's are a tenth of this.
MAX_BYTES = {CONFIG: 2**23, WEIGHTS: 2**31}
HEAP = b"GCOL\1\0\0\0"
EXPECTED = "the weights of Keras' InceptionResNetV2"
UNNAMED = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?")
# A layer's variables in Keras' order, by how many there are and the dimensions of the first.
VARIABLES = {
    (1, 4): ("kernel",),
    (2, 4): ("kernel", "bias"),
    (2, 2): ("kernel", "bias"),
    (3, 1): ("beta", "moving_mean", "moving_variance"),
    (4, 1): ("gamma", "beta", "moving_mean", "moving_variance"),
}
OUR_BATCH_NORM = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}

Array = NDArray[Any]
Arrays = list[Array]


def read_hdf5(path: Path) -> PublishedWeights:
    """A `.h5` or `.weights.h5` file; raises CheckpointError."""
    return _weights(_guarded(path, lambda: _layers(path, None)), path)


def read_archive(path: Path) -> PublishedWeights:
    """A `.keras` archive: the HDF5 file in it, unpacked beside nothing of the user's."""

    def read() -> dict[str, Arrays]:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            for name, limit in MAX_BYTES.items():
                if archive.getinfo(name).file_size > limit:
                    raise ValueError(f"{name} of over {limit >> 20} MiB")
            archive.extract(WEIGHTS, folder)
            return _layers(Path(folder) / WEIGHTS, json.loads(archive.read(CONFIG)))

    return _weights(_guarded(path, read), path)


def keras_names(config: SlimConfig) -> tuple[dict[str, str], frozenset[str]]:
    """Our names to Keras', its unnamed layers counted from 1; and ours that Keras does without."""
    with torch.device("meta"):
        network = build(config)
    names, ones, number = {}, set(), 0
    for name, module in network.named_modules():
        if isinstance(module, ConvBN):
            number += 1
            head = name == "head"
            convolution = "conv_7b" if head else f"conv2d_{number}"
            batch_norm = "conv_7b_bn" if head else f"batch_normalization_{number}"
            names[f"{name}.0.weight"] = f"{convolution}/kernel"
            for ours, theirs in OUR_BATCH_NORM.items():
                names[f"{name}.1.{ours}"] = f"{batch_norm}/{theirs}"
            ones.add(f"{name}.1.weight")
        elif name.endswith(".project"):
            grid, index = name.split(".")[:2]
            block = {"blocks_a": "block35", "blocks_b": "block17", "blocks_c": "block8"}[grid]
            layer = f"{block}_{int(index) + 1}_conv"
            names |= {f"{name}.0.weight": f"{layer}/kernel", f"{name}.0.bias": f"{layer}/bias"}
        elif isinstance(module, nn.Linear):
            names |= {f"{name}.weight": "predictions/kernel", f"{name}.bias": "predictions/bias"}
    return names, frozenset(ones)


def _weights(layers: dict[str, Arrays], path: Path) -> PublishedWeights:
    tensors = dict(_tensors(layers, path))
    if "conv_7b/kernel" not in tensors:
        some = ", ".join(list(layers)[:3]) or "none with weights"
        raise CheckpointError(path, f"layers of another network ({some}, ...)", EXPECTED)
    classes = tensors.get("predictions/bias")
    config = SlimConfig(num_classes=1000 if classes is None else classes.numel())
    names, ones = keras_names(config)
    return PublishedWeights(
        kind="Keras weights",
        config=config,
        preprocess=SLIM_PREPROCESS,
        tensors=tensors,
        names=names,
        ones=ones,
    )


def _tensors(layers: dict[str, Arrays], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every variable as `layer/variable`, in torch's layout."""
    canonical = _canonical_names(list(layers))
    for layer, arrays in layers.items():
        variables = VARIABLES.get((len(arrays), arrays[0].ndim))
        if variables is None:
            found = shortened([str(array.shape) for array in arrays])
            raise CheckpointError(path, f"layer {layer} has variables of {found}", EXPECTED)
        for variable, array in zip(variables, arrays, strict=True):
            tensor = torch.from_numpy(array.astype(np.float32, copy=False))
            if variable == "kernel":  # [height, width, in, out] or [in, out]
                tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T
            yield f"{canonical[layer]}/{variable}", tensor


def _canonical_names(layers: list[str]) -> dict[str, str]:
    """Unnamed layers counted from 1, whatever their file started with."""
    numbers: dict[str, dict[str, int]] = {"conv2d": {}, "batch_normalization": {}}
    for layer in layers:
        if match := UNNAMED.fullmatch(layer):
            numbers[match[1]][layer] = int(match[2] or 0)
    return {layer: layer for layer in layers} | {
        layer: f"{kind}_{number - min(of_kind.values()) + 1}"
        for kind, of_kind in numbers.items()
        for layer, number in of_kind.items()
    }


class _Datasets:
    """Reads the arrays of one HDF5 file, as Keras writes them: inside it and uncompressed.

    Others could claim any size in a few bytes, or hold what is in another file. Raises ValueError.
    """

    def __init__(self, file: h5py.File, num_bytes: int) -> None:
        self._bytes_left = num_bytes
        outside = file.visititems_links(
            lambda name, link: name if isinstance(link, h5py.ExternalLink) else None
        )
        if outside:
            raise ValueError(f"{outside} leads to another file")

    def array(self, dataset: h5py.HLObject) -> Array:
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{dataset.name} is no data set")
        layout = dataset.id.get_create_plist().get_layout()
        if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or dataset.external:
            raise ValueError(
                f"{dataset.name} is chunked, compressed or kept in other files; "
                "h5repack -f NONE -l CONTI makes it plain"
            )
        if dataset.dtype.kind != "f":
            raise ValueError(f"{dataset.name} holds {dataset.dtype}, no floats")
        self._bytes_left -= dataset.nbytes
        if self._bytes_left < 0:
            raise ValueError(f"{dataset.name} claims more bytes than the file has")
        return np.asarray(dataset)


def _check_heaps(path: Path) -> None:
    """Refuse a damaged heap of strings: over an empty object HDF5 2.0 loops for ever.

    A heap (HDF5 File Format Specification, III.E) is its size and objects up to its end: index,
    size, content padded to 8 bytes; index 0 is the free rest, whose size counts its header.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(HEAP)
        while start >= 0:
            at, end = start + 16, start + struct.unpack_from("<Q", content, start + 8)[0]
            while at + 16 <= end:
                index, size = struct.unpack_from("<H6xQ", content, at)
                step = 16 + -(-size // 8) * 8 if index else size
                if step < 16 or at + step > end:
                    raise ValueError(f"damaged heap of strings at byte {start}")
                at += step
            start = content.find(HEAP, start + 1)


def _layers(path: Path, config: Any) -> dict[str, Arrays]:  # noqa: ANN401 (JSON)
    """The variables of each layer that has any, under the layer's name."""
    _check_heaps(path)
    with h5py.File(path, "r") as file:
        datasets = _Datasets(file, path.stat().st_size)
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs:
            return dict(_legacy_layers(root, datasets))
        return dict(_numbered_layers(root, datasets, config))


def _legacy_layers(root: h5py.Group, datasets: _Datasets) -> Iterator[tuple[str, Arrays]]:
    """Keras 1 and 2: a group per layer, which lists its variables."""
    for layer in map(_text, root.attrs["layer_names"]):
        names = [_text(name) for name in root[layer].attrs["weight_names"]]
        if names:
            yield layer, [datasets.array(root[layer][name]) for name in names]


def _numbered_layers(
    root: h5py.Group,
    datasets: _Datasets,
    config: Any,  # noqa: ANN401
) -> Iterator[tuple[str, Arrays]]:
    """Keras 3: variables 0, 1, ... in groups numbered per class, in the order of `config`.

    Late versions note each layer's own name; for earlier ones `config` has to tell.
    """
    groups = root["layers"] if "layers" in root else root["_layer_checkpoint_dependencies"]
    own_names = _names_in_config(config) if config else {}
    for group_name, group in groups.items():
        variables = group.get("vars", {})
        if len(variables):
            name = variables.attrs.get("name", own_names.get(group_name))
            if name is None:
                raise ValueError("its layers are numbered only; save the model as .keras instead")
            yield (
                _text(name),
                [datasets.array(variables[str(i)]) for i in range(len(variables))],
            )


def _names_in_config(config: Any) -> dict[str, str]:  # noqa: ANN401
    """Group names to layer names: the classes in snake case, counted in the model's order."""
    counts: dict[str, int] = {}
    names = {}
    for layer in config["config"]["layers"]:
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", layer["class_name"]).lower()
        number = counts.get(snake, 0)
        counts[snake] = number + 1
        names[f"{snake}_{number}" if number else snake] = layer["config"]["name"]
    return names


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _guarded(path: Path, read: Callable[[], dict[str, Arrays]]) -> dict[str, Arrays]:
    try:
        return read()
    except Exception as error:  # h5py raises any of them on damaged files, RuntimeError too
        raise_if_stopped()
        raise CheckpointError(path, f"unreadable Keras file ({error})", EXPECTED) from error
