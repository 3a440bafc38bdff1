"""Torch7's binary format, written: what torch.save(FILE, OBJECT) leaves (torch7, File.lua).

Independent of the reader under test. Python values stand for Lua's: None, bool, float, str, dict
(a table), `Object` and `Tensor`. What is mentioned twice is written once, by its index.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(eq=False)
class Object:
    """An object of a Torch7 class; `before` are values written ahead of its fields."""

    type_name: str
    fields: dict[Any, Any] = field(default_factory=dict)
    version: int | None = 1  # None: a file older than versions
    before: tuple[Any, ...] = ()


@dataclass(eq=False)
class Storage:
    """A run of numbers, as torch.FloatStorage (kind Float) or torch.CudaStorage (kind Cuda)."""

    values: np.ndarray
    kind: str = "Float"


@dataclass(eq=False)
class Tensor:
    """A tensor over its own storage, or at `offset` elements into a shared one."""

    array: np.ndarray
    kind: str = "Float"
    storage: Storage | None = None
    offset: int = 0


def sequence(*values: object) -> dict[float, object]:
    """A Lua list: a table with the keys 1, 2, ..."""
    return {float(i): value for i, value in enumerate(values, 1)}


class Writer:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.indices: dict[int, int] = {}  # id of what was written -> its index
        self.kept: list[object] = []  # so that no id is used twice

    def write(self, value: Any) -> "Writer":
        if value is None:
            self.int(0)
        elif isinstance(value, bool):
            self.int(5).int(int(value))
        elif isinstance(value, int | float):
            self.int(1).pack("<d", float(value))
        elif isinstance(value, str):
            self.int(2).string(value)
        else:
            self.indexed(value)
        return self

    def indexed(self, value: Any) -> None:
        self.int(3 if isinstance(value, dict) else 4)
        known = id(value) in self.indices
        index = self.indices.setdefault(id(value), len(self.indices) + 1)
        self.kept.append(value)
        self.int(index)
        if known:
            return
        if isinstance(value, dict):
            self.int(len(value))
            for key, content in value.items():
                self.write(key).write(content)
        elif isinstance(value, Object):
            self.header(value.type_name, value.version)
            for content in (*value.before, value.fields):
                self.write(content)
        elif isinstance(value, Storage):
            self.header(f"torch.{value.kind}Storage")
            self.long(value.values.size).chunks.append(value.values.tobytes())
        else:
            self.tensor(value)

    def tensor(self, tensor: Tensor) -> None:
        self.header(f"torch.{tensor.kind}Tensor")
        shape = tensor.array.shape if tensor.array.size else ()
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        self.int(len(shape))
        for number in (*shape, *strides, tensor.offset + 1):
            self.long(number)
        own = Storage(np.ascontiguousarray(tensor.array), tensor.kind) if shape else None
        self.write(tensor.storage or own)

    def header(self, type_name: str, version: int | None = 1) -> None:
        if version is not None:
            self.string(f"V {version}")
        self.string(type_name)

    def string(self, text: str) -> None:
        self.int(len(text)).chunks.append(text.encode("latin-1"))

    def int(self, number: int) -> "Writer":
        return self.pack("<i", number)

    def long(self, number: int) -> "Writer":
        return self.pack("<q", number)

    def pack(self, form: str, number: float) -> "Writer":
        self.chunks.append(struct.pack(form, number))
        return self


def dumps(value: object) -> bytes:
    return b"".join(Writer().write(value).chunks)


def save(path: Path, value: object) -> Path:
    with path.open("wb") as file:
        file.writelines(Writer().write(value).chunks)
    return path
