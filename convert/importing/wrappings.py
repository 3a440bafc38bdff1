"""What training programs put around a network's weights: dictionaries, and prefixes of names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from irv2.errors import CheckpointError

Choice = Literal["raw", "ema"]
STATE_DICT = "a state_dict: tensors by name"
# Keys of training states, by what lies under them: the trained weights or their running average.
KEYS: dict[Choice, tuple[str, ...]] = {
    "raw": ("state_dict", "model_state_dict", "model"),
    "ema": ("state_dict_ema", "model_ema"),
}


def choose(content: Any, choice: Choice, path: Path) -> tuple[Any, tuple[str, ...]]:  # noqa: ANN401
    """What lies under a training state's key of this kind, or `content` itself; and notes."""
    found = {
        kind: next((key for key in keys if isinstance(content.get(key), Mapping)), "")
        for kind, keys in KEYS.items()
        if isinstance(content, Mapping)
    }
    if choice == "ema" and not found.get("ema"):
        raise CheckpointError(
            path, "has no running average of its weights", " or ".join(KEYS["ema"]),
            "leave out --weights ema",
        )  # fmt: skip
    if choice == "raw" and found.get("ema") and not found["raw"]:
        raise CheckpointError(
            path, f"has only {found['ema']}, a running average", "weights", "pass --weights ema"
        )
    if not (key := found.get(choice)):
        return content, ()
    note = f"its running average, {found['ema']}, was not used (--weights ema)"
    return content[key], (note,) if choice == "raw" and found["ema"] else ()


def named_tensors(content: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401 (any file's)
    """A state_dict, checked; raises CheckpointError."""
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"holds a {type(content).__name__}", STATE_DICT)
    foreign = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        inside = [name for name, value in content.items() if isinstance(value, Mapping) and value]
        way_out = f"save one of {', '.join(map(str, inside))} by itself" if inside else ""
        raise CheckpointError(path, f"{foreign[0]} is no tensor", STATE_DICT, way_out)
    unlike = [name for name, tensor in content.items() if not _is_dense(tensor)]
    if unlike:
        raise CheckpointError(
            path, f"{unlike[0]} is sparse, nested or without values", "dense tensors"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _is_dense(tensor: Tensor) -> bool:
    on_cpu = tensor.device.type == "cpu"  # not on `meta`, whatever the file was mapped to
    return tensor.layout == torch.strided and on_cpu and not tensor.is_nested


def unwrapped(tensors: dict[str, Tensor], first: str, path: Path) -> dict[str, Tensor] | None:
    """The tensors without what stands before a network's `first` name; None if it is not there.

    Compiled, parallel and Lightning's modules do so (`_orig_mod.`, `module.`, `model.`). Names
    without that prefix are kept: a classifier may lie beside its network.
    """
    found = [name for name in tensors if f".{name}".endswith(f".{first}")]
    if not found:
        return None
    prefixes = [name.removesuffix(first) for name in found]
    short = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items()}
    if len(found) > 1 or len(short) < len(tensors):
        names = ", ".join(prefix or "no prefix" for prefix in prefixes)
        raise CheckpointError(
            path,
            f"several networks in one state_dict, under {names}",
            "one",
            "save the state_dict of one of them",
        )
    return short


def head_of(tensors: dict[str, Tensor], num_features: int) -> str | None:
    """The name of the only linear layer that takes so many features; None if there is no such."""
    heads = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] == num_features
    ]
    return heads[0] if len(heads) == 1 else None
