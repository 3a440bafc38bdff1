"""What a file of published weights is, by its content, and the reader that knows it."""

import argparse
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from irv2.checkpoint import SCHEMA
from irv2.convert.importing.keras import CONFIG, WEIGHTS, read_archive, read_hdf5
from irv2.convert.importing.original import read_original
from irv2.convert.importing.own import read_own
from irv2.convert.importing.slim import read_slim
from irv2.convert.importing.timm_files import described
from irv2.convert.importing.weights import PublishedWeights, without_classifier
from irv2.convert.importing.wrappings import STATE_DICT, Choice, choose, named_tensors
from irv2.errors import CheckpointError
from irv2.system.stop import raise_if_stopped

HDF5 = b"\x89HDF\r\n\x1a\n"
PICKLE = b"\x80"
TORCH7 = (b"\x03\x00\x00\x00", b"\x04\x00\x00\x00")  # a table, an object
TORCH7_TEXT = (b"3\n", b"4\n")
SAFETENSORS = b"\0\0\0\0{"  # after four bytes: its header's length, whose low bytes may be any
TORCHSCRIPT = "/constants.pkl"  # ends a name in its archives
EXPECTED = "weights as .t7, .pth, .safetensors, .h5 or .keras"


def read_weights(path: Path, choice: Choice = "raw") -> PublishedWeights:
    """Recognise and read a file; raises CheckpointError.

    Of a training state that holds both, `choice` takes the weights or their running average.
    """
    if not path.is_file():
        raise CheckpointError(path, "is a folder" if path.is_dir() else "no such file", EXPECTED)
    with path.open("rb") as file:
        start = file.read(16)
    is_safetensors = start[4:9] == SAFETENSORS  # first: its length may begin like any format
    if start.startswith(b"PK") and not is_safetensors:
        return _read_zip(path, choice)
    if start.startswith(PICKLE) and not is_safetensors:
        return _read_torch(path, choice, mmap=False)
    _refuse_choice(path, choice)
    if is_safetensors:
        return _read_tensors(_safetensors(path), None, path)
    if start.startswith(HDF5):
        return without_classifier(read_hdf5(path))
    if start.startswith(TORCH7):
        return without_classifier(read_original(path))
    if start.startswith(TORCH7_TEXT):
        raise CheckpointError(
            path,
            "a Torch7 file in text format",
            "the binary one",
            "save it again with torch.save(FILE, model)",
        )
    size = path.stat().st_size
    raise CheckpointError(path, f"an unknown format ({size} bytes)", EXPECTED)


def _refuse_choice(path: Path, choice: Choice) -> None:
    """Refuse to look for an average where there is none: only training states of torch hold one."""
    choose({}, choice, path)


def _read_zip(path: Path, choice: Choice) -> PublishedWeights:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except Exception as error:  # on damaged archives zipfile raises anything
        raise_if_stopped()
        raise CheckpointError(
            path, f"half a file, or a damaged one ({error})", EXPECTED, "copy it again"
        ) from error
    if {CONFIG, WEIGHTS} <= set(members):
        _refuse_choice(path, choice)
        return without_classifier(read_archive(path))
    if any(name.endswith(TORCHSCRIPT) for name in members):
        raise CheckpointError(
            path,
            "is a TorchScript program, which is not loaded",
            STATE_DICT,
            "save its weights where it is trusted: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)",
        )
    return _read_torch(path, choice, mmap=True)


def _read_torch(path: Path, choice: Choice, *, mmap: bool) -> PublishedWeights:
    """The weights in a torch file, also inside a training state; nothing in it is executed."""
    try:
        content = _load(path, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            f"holds Python objects or code, which are not loaded{_global(error)}",
            STATE_DICT,
            "save it again where it is trusted: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:  # on damaged files torch raises anything, even AssertionError
        raise_if_stopped()
        raise CheckpointError(path, f"damaged ({error})", STATE_DICT, "copy it again") from error
    if isinstance(content, Mapping) and content.get("schema") == SCHEMA:
        raise CheckpointError(path, "is a checkpoint of irv2 already", way_out="use it as it is")
    state, notes = choose(content, choice, path)
    args = content.get("args") if isinstance(content, Mapping) else None
    return _read_tensors(named_tensors(state, path), args, path, notes)


def _read_tensors(
    tensors: dict[str, Tensor],
    args: object,
    path: Path,
    notes: tuple[str, ...] = (),
) -> PublishedWeights:
    weights = without_classifier(read_own(tensors, path) or read_slim(tensors, path))
    weights = replace(weights, notes=(*weights.notes, *notes))
    return described(weights, args, path)


def _load(path: Path, *, mmap: bool) -> Any:  # noqa: ANN401 (any file's)
    # timm's training states hold their options as a Namespace, which is plain values.
    with (
        warnings.catch_warnings(action="ignore"),  # of unusual pickles, on stderr
        torch.serialization.safe_globals([argparse.Namespace]),
    ):
        if mmap and path.suffix != ".safetensors":  # such a path torch reads by its name
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _global(error: pickle.UnpicklingError) -> str:
    """` (os.system)`: the first name that torch refused, where its message tells."""
    words = str(error).partition("GLOBAL ")[2].split()
    return f" ({words[0]})" if words else ""


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError, ValueError, OSError) as error:
        raise CheckpointError(
            path, f"damaged safetensors file ({error})", EXPECTED, "copy it again"
        ) from error
