"""Keras' InceptionResNetV2, from its HDF5 files: `.h5` of any age, `.weights.h5` and `.keras`.

Read with h5py alone. Keras numbers its unnamed layers in the order in which they were made, from
wherever the session stood; that order is our network's. Its batch norm has no gamma.
"""

import json
import mmap
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from irv2.convert.importing.keras_graph import read_graph
from irv2.convert.importing.weights import SLIM_PREPROCESS, PublishedWeights
from irv2.errors import CheckpointError, Irv2Error
from irv2.model.build import build
from irv2.model.paper import ConvBN
from irv2.network_config import SlimConfig
from irv2.system.files import temporary_folder
from irv2.system.stop import raise_if_stopped
from irv2.system.text import shortened

CONFIG, WEIGHTS = "config.json", "model.weights.h5"  # in a .keras archive
# Members of an archive, unpacked; the published network's are a tenth of this.
MAX_BYTES = {CONFIG: 2**23, WEIGHTS: 2**31}
HEAP = b"GCOL\1\0\0\0"
EXPECTED = "the weights of Keras' InceptionResNetV2"
PREDICTIONS = "predictions"  # the head, as the published network names it
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
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Content:
    """The variables of each layer that has any, and the model's graph if the file holds it."""

    layers: dict[str, Arrays]
    graph: Any  # JSON, or None


def read_hdf5(path: Path) -> PublishedWeights:
    """A `.h5` or `.weights.h5` file; raises CheckpointError."""
    return _weights(_guarded(path, lambda: _read_file(path, None)), path)


def read_archive(path: Path) -> PublishedWeights:
    """A `.keras` archive: the HDF5 file in it, unpacked into a temporary folder."""

    def read() -> _Content:
        with zipfile.ZipFile(path) as archive, temporary_folder() as folder:
            for name, limit in MAX_BYTES.items():
                if archive.getinfo(name).file_size > limit:
                    raise ValueError(f"{name} of over {limit >> 20} MiB")
            archive.extract(WEIGHTS, folder)
            return _read_file(folder / WEIGHTS, json.loads(archive.read(CONFIG)))

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
            head = PREDICTIONS
            names |= {f"{name}.weight": f"{head}/kernel", f"{name}.bias": f"{head}/bias"}
    return names, frozenset(ones)


def _weights(content: _Content, path: Path) -> PublishedWeights:
    layers = content.layers
    tensors = dict(_tensors(layers, path))
    if "conv_7b/kernel" not in tensors:
        some = ", ".join(list(layers)[:3]) or "none with weights"
        raise CheckpointError(path, f"layers of another network ({some}, ...)", EXPECTED)
    statements, notes = [], []
    if content.graph is None:
        notes.append("no graph in the file: an average pool and a softmax are assumed")
    else:
        statements.append(_guarded(path, lambda: read_graph(content.graph, path)))
    classes = tensors.get(f"{PREDICTIONS}/bias")
    config = SlimConfig(num_classes=1000 if classes is None else classes.numel())
    names, ones = keras_names(config)
    return PublishedWeights(
        kind="Keras weights",
        config=config,
        preprocess=SLIM_PREPROCESS,
        tensors=tensors,
        names=names,
        ones=ones,
        statements=tuple(statements),
        notes=tuple(notes),
    )


def _tensors(layers: dict[str, Arrays], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every variable as `layer/variable`, in torch's layout."""
    canonical = _canonical_names(layers)
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


def _canonical_names(layers: dict[str, Arrays]) -> dict[str, str]:
    """Unnamed layers counted from 1, whatever their file started with; the only Dense layer."""
    dense = [layer for layer, arrays in layers.items() if arrays[0].ndim == 2]
    numbers: dict[str, dict[str, int]] = {"conv2d": {}, "batch_normalization": {}}
    for layer in layers:
        if match := UNNAMED.fullmatch(layer):
            numbers[match[1]][layer] = int(match[2] or 0)
    canonical = {layer: layer for layer in layers} | {
        layer: f"{kind}_{number - min(of_kind.values()) + 1}"
        for kind, of_kind in numbers.items()
        for layer, number in of_kind.items()
    }
    return canonical | ({dense[0]: PREDICTIONS} if len(dense) == 1 else {})


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
        is_bfloat16 = dataset.dtype == np.dtype("V2")  # which HDF5 has no type for
        if dataset.dtype.kind != "f" and not is_bfloat16:
            raise ValueError(f"{dataset.name} holds {dataset.dtype}, no floats")
        self._bytes_left -= dataset.nbytes
        if self._bytes_left < 0:
            raise ValueError(f"{dataset.name} claims more bytes than the file has")
        array = np.asarray(dataset)
        return array.view(ml_dtypes.bfloat16) if is_bfloat16 else array


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


def _read_file(path: Path, graph: Any) -> _Content:  # noqa: ANN401 (JSON)
    """Read an HDF5 file, whose own graph stands in for `graph` where it has one."""
    _check_heaps(path)
    with h5py.File(path, "r") as file:
        if graph is None and "model_config" in file.attrs:
            graph = json.loads(_text(file.attrs["model_config"]))
        datasets = _Datasets(file, path.stat().st_size)
        root = file.get("model_weights", file)
        read = _legacy_layers if "layer_names" in root.attrs else _numbered_layers
        layers: dict[str, Arrays] = {}
        for name, arrays in read(root, datasets, graph):
            if name in layers:
                raise ValueError(f"two layers are named {name}")
            layers[name] = arrays
        return _Content(layers, graph)


def _legacy_layers(
    root: h5py.Group,
    datasets: _Datasets,
    _: Any,  # noqa: ANN401
) -> Iterator[tuple[str, Arrays]]:
    """Keras 1 and 2: a group per layer, which lists its variables.

    A model in the model is one layer that lists those of its own, under their layers' names.
    """
    for layer in map(_text, root.attrs["layer_names"]):
        names = [_text(name) for name in root[layer].attrs["weight_names"]]
        owners = [name.split("/")[-2] if "/" in name else layer for name in names]
        is_model = len(set(owners)) > 1
        arrays: dict[str, Arrays] = {}
        for owner, name in zip(owners, names, strict=True):
            arrays.setdefault(owner if is_model else layer, []).append(
                datasets.array(root[layer][name])
            )
        yield from arrays.items()


def _numbered_layers(
    root: h5py.Group,
    datasets: _Datasets,
    model: Any,  # noqa: ANN401
) -> Iterator[tuple[str, Arrays]]:
    """Keras 3: variables 0, 1, ... in groups numbered per class, in the order of `model`.

    Late versions note each layer's own name; for earlier ones the model's graph has to tell. A
    model in the model has layers of its own.
    """
    groups = _groups(root)
    own = _layers_by_group(model) if model else {}
    for group_name, group in groups.items():
        if _groups(group):
            yield from _numbered_layers(group, datasets, own.get(group_name))
        variables = group.get("vars", {})
        if len(variables):
            in_graph = own.get(group_name, {"config": {}})["config"].get("name")
            name = variables.attrs.get("name", in_graph)
            if name is None:
                raise ValueError("its layers are numbered only; save the model as .keras instead")
            yield (
                _text(name),
                [datasets.array(variables[str(i)]) for i in range(len(variables))],
            )


def _groups(model: h5py.Group) -> Mapping[str, h5py.Group]:
    for name in ("layers", "_layer_checkpoint_dependencies"):
        if name in model:
            return model[name]  # type: ignore[no-any-return]
    return {}


def _layers_by_group(model: Any) -> dict[str, Any]:  # noqa: ANN401
    """A model's layers by group: their classes in snake case, counted in the model's order."""
    counts: Counter[str] = Counter()
    layers = {}
    for layer in model["config"]["layers"]:
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", layer["class_name"]).lower()
        number = counts[snake]
        counts[snake] += 1
        layers[f"{snake}_{number}" if number else snake] = layer
    return layers


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _guarded(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except Irv2Error:
        raise
    except Exception as error:  # h5py raises any of them on damaged files, RuntimeError too
        raise_if_stopped()
        raise CheckpointError(path, f"unreadable Keras file ({error})", EXPECTED) from error
