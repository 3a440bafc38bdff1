"""Checkpoints: one file with a network, its training settings and the state of the training.

A torch.save archive of tensors, numbers, strings, dicts and lists, so that it loads with
`weights_only=True`. A hash inside covers every tensor, since torch does not notice flipped bytes.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

import msgspec
import torch
from torch import Tensor

from irv2.errors import CheckpointError, InputError
from irv2.images.preprocess import Preprocess
from irv2.manifest import Imported, Source
from irv2.model.build import Network, build
from irv2.network_config import NETWORKS, NetworkConfig, config_from_json
from irv2.system.files import explain_full_disk, open_file_sha256, write_atomically
from irv2.system.stop import raise_if_stopped

SCHEMA = "irv2.checkpoint/1"
_EXPECTED = "a checkpoint that irv2-train wrote"
_WAY_OUT = "if it holds weights from elsewhere: irv2 import {path} -o CKPT.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The contents of a checkpoint; `training` (optimiser, position, averages) is for resuming.

    `begun_from` is the checkpoint whose weights its run began with (`--init-from`).
    """

    model: NetworkConfig
    state_dict: Mapping[str, Tensor]
    classes: list[str]
    preprocess: Preprocess
    setting: str
    epoch: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    begun_from: Source | None = None

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically. Raises Irv2Error if the disk is full."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "arch": self.model.arch,
            "model": self.model.to_json(),
            "state_dict": dict(self.state_dict),
            "classes": self.classes,
            "preprocess": self.preprocess.to_json(),
            "setting": self.setting,
            "epoch": self.epoch,
            "step": self.step,
            "metrics": self.metrics,
            "recipe": self.recipe,
            "training": self.training,
            "begun_from": msgspec.to_builtins(self.begun_from),
        }
        content["sha256"] = content_sha256(content)
        with explain_full_disk(path, num_bytes=lambda: _num_bytes(content)):
            write_atomically(path, lambda temporary: _write(content, temporary))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint onto the CPU and check it; raises CheckpointError."""
        with _opened(path) as file:
            return cls._read(file, path)

    @classmethod
    def load_with_sha256(cls, path: Path) -> tuple[Self, str]:
        """Load with the sha256 of the very file read: by now `path` may lead to another."""
        with _opened(path) as file:
            checkpoint = cls._read(file, path)
            file.seek(0)
            return checkpoint, open_file_sha256(file)

    @classmethod
    def _read(cls, file: BufferedReader, path: Path) -> Self:
        content = _load(file, path)
        if content.get("schema") != SCHEMA:
            raise CheckpointError(
                path,
                f"schema {content.get('schema', 'missing')}",
                f"{SCHEMA}: {_EXPECTED}",
                _WAY_OUT.format(path=path),
            )
        stated = content.pop("sha256", None)
        if stated != content_sha256(content):
            raise CheckpointError(
                path,
                "its contents do not match the hash inside",
                "an undamaged file",
                "copy it again or use another checkpoint",
            )
        arch = content.pop("arch")
        if arch not in NETWORKS:
            raise CheckpointError(path, f"network {arch}", " or ".join(NETWORKS))
        del content["schema"]
        content["model"] = config_from_json(arch, content["model"])
        try:
            content["preprocess"] = Preprocess.from_json(content["preprocess"], path)
        except InputError as error:
            raise CheckpointError(path, error.got, error.expected, error.way_out) from error
        content["begun_from"] = msgspec.convert(content.get("begun_from"), Source | None)
        num_names, num_classes = len(content["classes"]), content["model"].num_classes
        if num_names != num_classes:
            raise CheckpointError(
                path,
                f"names {num_names} classes",
                f"{num_classes}, as its network has",
                "save it again with a name for each",
            )
        return cls(**content)

    def source(self, sha256: str) -> Source:
        """Describe this checkpoint, whose file has this hash, and where its weights came from."""
        imported = self.recipe.get("imported")
        return Source(
            checkpoint_sha256=sha256,
            arch=self.model.arch,
            setting=self.setting,
            epoch=self.epoch,
            imported=msgspec.convert(imported, Imported | None),
            begun_from=self.begun_from,
        )

    def require_classifier(self, what: object) -> None:
        """Raise CheckpointError about `what` if it was imported from a file without a classifier.

        Such weights are for a fine-tuning alone.
        """
        if not self.classes:
            raise CheckpointError(
                what,
                "has no classifier",
                "one that names classes",
                "train one: irv2-train --init-from begins with these weights",
            )

    def build_model(self) -> Network:
        """Build the network with these weights, in eval mode, on the CPU.

        Raises CheckpointError if it has no classifier.
        """
        self.require_classifier("the checkpoint")
        with torch.device("meta"):  # spend no time on initial values
            model = build(self.model)
        model.load_state_dict(self.state_dict, assign=True)
        return model.eval()


def load_model(path: str | Path) -> Network:
    """Load the network of a checkpoint in eval mode: normalised float NCHW in, logits out.

    Raises CheckpointError if `path` is not an undamaged checkpoint.
    """
    return Checkpoint.load(Path(path)).build_model()


def _num_bytes(content: object) -> int:
    """Count the bytes of all tensors of a checkpoint, which are nearly all of its file."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        return sum(map(_num_bytes, content.values()))
    return sum(map(_num_bytes, content)) if isinstance(content, list | tuple) else 0


def _write(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a name, torch hides why writing fails
        torch.save(content, file)


def _opened(path: Path) -> BufferedReader:
    if not path.is_file():
        raise CheckpointError(path, "is a folder" if path.is_dir() else "no such file", _EXPECTED)
    return path.open("rb")


def _load(file: BufferedReader, path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(file):  # its directory comes last, so a cut-off file is refused too
        size = f"{path.stat().st_size} bytes"
        raise CheckpointError(
            path,
            f"half a checkpoint, or another format ({size})",
            _EXPECTED,
            _WAY_OUT.format(path=path),
        )
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            path,
            "holds more than tensors and plain values",
            _EXPECTED,
            _WAY_OUT.format(path=path),
        ) from error
    except Exception as error:  # for flipped bytes torch raises anything, even AssertionError
        raise_if_stopped()
        raise CheckpointError(path, f"damaged ({error})", _EXPECTED) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            path, f"holds a {type(content).__name__}", _EXPECTED, _WAY_OUT.format(path=path)
        )
    return content


def content_sha256(content: object) -> str:
    """Hash every tensor and plain value, whatever their order in the file (hex sha256)."""
    digest = hashlib.sha256()
    _update(digest, content)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", value: object) -> None:
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        # Viewed as bytes, since numpy lacks bfloat16; a scalar has no byte view.
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"{key!r}:".encode())
            _update(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _update(digest, item)
    else:
        digest.update(repr(value).encode())
