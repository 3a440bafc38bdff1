"""Torch7's binary files (`.t7`), read strictly and without running anything.

The format (torch7, File.lua and generic/Tensor.c): every value is an int32 type, then its content.
Tables, objects and functions of types 7 and 8 carry an index, so that a second mention is the
index alone. Integers are little endian, lengths and indices 32 bits, sizes 64. Functions are
skipped, never loaded.
"""

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irv2.errors import CheckpointError

NIL, NUMBER, STRING, TABLE, OBJECT, BOOLEAN, FUNCTION = range(7)
RECURSIVE_FUNCTIONS = (7, 8)
MAX_DEPTH = 100  # the original's files nest about 30 deep
MAX_DIMENSIONS = 8
DTYPES = {
    "Byte": "u1",
    "Char": "i1",
    "Short": "<i2",
    "Int": "<i4",
    "Long": "<i8",
    "Half": "<f2",
    "Float": "<f4",
    "Double": "<f8",
}
TWO_PART_OBJECTS = {"nn.DataParallelTable": 2}  # since this version: the GPUs, then the fields

Array = NDArray[Any]


@dataclass(slots=True, eq=False)
class Torch7Object:
    """An object of a Torch7 class: its name and fields."""

    type_name: str
    fields: dict[Any, Any] = field(default_factory=dict)


class Malformed(Exception):
    """The bytes are no Torch7 file; the message says what was met."""


def load(path: Path) -> Any:  # noqa: ANN401 (a file holds any value)
    """The value in a file: None, float, str, bool, dict, Torch7Object or an array.

    Arrays are read-only views of the file. Raises CheckpointError.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _Reader(data).value()
    except Malformed as error:
        raise CheckpointError(
            path,
            f"damaged Torch7 file ({error})",
            "a whole one in Torch7's binary format",
            "copy it again",
        ) from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at, self._depth = data, 0, 0
        self._known: dict[int, Any] = {}  # tables, objects and functions by index

    def value(self) -> Any:  # noqa: ANN401
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Malformed(f"values nested over {MAX_DEPTH} deep")
        try:
            return self._value()
        finally:
            self._depth -= 1

    def _value(self) -> Any:  # noqa: ANN401
        kind = self._int()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return self._unpack("<d")
        if kind == STRING:
            return self._string()
        if kind == BOOLEAN:
            return self._int() == 1
        if kind == FUNCTION:
            self._skip_function()
            return None
        if kind not in (TABLE, OBJECT, *RECURSIVE_FUNCTIONS):
            raise Malformed(f"type {kind} at byte {self._at - 4}")
        index = self._int()
        if index not in self._known:
            self._indexed(kind, index)
        return self._known[index]

    def _indexed(self, kind: int, index: int) -> None:
        if kind == TABLE:
            self._table(index)
        elif kind == OBJECT:
            self._object(index)
        else:
            self._known[index] = None  # before what it closes over, which may be itself
            self._skip_function()

    def _table(self, index: int) -> None:
        table: dict[Any, Any] = {}
        self._known[index] = table  # before its content, which may mention it
        for _ in range(self._count()):
            key = self.value()
            if not isinstance(key, str | float | bool | Torch7Object):
                raise Malformed(f"a {type(key).__name__} as a table's key")
            table[key] = self.value()

    def _object(self, index: int) -> None:
        version, type_name = self._string(), ""
        if version.startswith("V "):
            type_name = self._string()
        else:  # before Torch7 had versions
            version, type_name = "V 0", version
        package, _, name = type_name.partition(".")
        if package == "torch" and name.endswith("Storage"):
            self._known[index] = self._storage(_dtype(type_name, "Storage"))
        elif package == "torch" and name.endswith("Tensor"):
            self._known[index] = self._tensor(_dtype(type_name, "Tensor"))
        else:
            thing = Torch7Object(type_name)
            self._known[index] = thing
            number = int(version[2:]) if version[2:].isdecimal() else 0
            if number >= TWO_PART_OBJECTS.get(type_name, 2**31):
                self.value()
            fields = self.value()
            if not isinstance(fields, dict):
                raise Malformed(f"{type_name} without fields")
            thing.fields = fields

    def _skip_function(self) -> None:
        self._string()  # its code
        self.value()  # and what it closes over

    def _storage(self, dtype: np.dtype[Any]) -> Array:
        return np.frombuffer(self._take(self._long() * dtype.itemsize), dtype)

    def _tensor(self, dtype: np.dtype[Any]) -> Array:
        num_dimensions = self._int()
        if not 0 <= num_dimensions <= MAX_DIMENSIONS:
            raise Malformed(f"a tensor of {num_dimensions} dimensions")
        shape = [self._long() for _ in range(num_dimensions)]
        strides = [self._long() for _ in range(num_dimensions)]
        offset = self._long() - 1
        storage = self.value()
        if storage is None or not shape or 0 in shape:  # as clearState leaves them
            return np.empty(0, dtype)
        if not isinstance(storage, np.ndarray) or storage.dtype != dtype:
            raise Malformed("a tensor without a storage of its type")
        _check_view(shape, strides, offset, storage.size)
        bytes_per_step = [stride * dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(
            storage[offset:], shape, bytes_per_step, writeable=False
        )

    def _int(self) -> int:
        return int(self._unpack("<i"))

    def _long(self) -> int:
        return int(self._unpack("<q"))

    def _count(self) -> int:
        count = self._int()
        if count < 0:
            raise Malformed(f"a table of {count} entries")
        return count

    def _string(self) -> str:
        return self._take(self._int()).tobytes().decode("latin-1")

    def _unpack(self, form: str) -> Any:  # noqa: ANN401
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, num_bytes: int) -> memoryview:
        left = len(self._data) - self._at
        if not 0 <= num_bytes <= left:
            raise Malformed(f"{num_bytes} bytes wanted at byte {self._at}, {left} left")
        self._at += num_bytes
        return memoryview(self._data)[self._at - num_bytes : self._at]


def _dtype(type_name: str, suffix: str) -> np.dtype[Any]:
    """The element type of torch.FloatTensor, torch.CudaStorage, torch.CudaDoubleTensor, ..."""
    element = type_name.removeprefix("torch.").removesuffix(suffix).removeprefix("Cuda") or "Float"
    if element not in DTYPES:
        raise Malformed(f"unknown type {type_name}")
    return np.dtype(DTYPES[element])


def _check_view(shape: list[int], strides: list[int], offset: int, num_elements: int) -> None:
    """Refuse a tensor that reaches outside its storage, or is larger than it."""
    inside = min(shape) > 0 and min(strides) >= 0 and offset >= 0
    if inside:
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        inside = last < num_elements and np.prod(shape, dtype=object) <= num_elements
    if not inside:
        raise Malformed(f"a tensor of shape {shape} that its {num_elements} elements can't hold")
