"""The few calls of the CUDA runtime that a runner needs, each of them checked. No torch."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from irv2.errors import EngineError
from irv2.types import FloatArray, UInt8Array


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that this process uses, device 0."""

    name: str
    capability: str  # e.g. "9.0"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def find_gpu() -> Gpu:
    """The GPU here; raises EngineError where there is none, no driver or no cuda-python."""
    cuda = import_cuda()
    try:
        count = call(cuda.cudaGetDeviceCount)
    except EngineError as error:
        raise EngineError("CUDA", f"no usable GPU ({error.got})", "an NVIDIA GPU") from error
    if count == 0:
        raise EngineError("CUDA", "no GPU", "an NVIDIA GPU")
    properties = call(cuda.cudaGetDeviceProperties, 0)
    name = properties.name.decode().rstrip("\0")
    return Gpu(name, f"{properties.major}.{properties.minor}")


def import_cuda() -> Any:  # noqa: ANN401 (a module)
    """The module cuda.bindings.runtime; raises EngineError naming the extra where it is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            "CUDA", f"cuda-python can't be imported ({error})",
            way_out='pip install "irv2[gpu]" or "irv2[rtx]"',
        ) from error  # fmt: skip
    return runtime


def call(function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 (what it returns)
    """Call a function of the CUDA runtime; its result without the status. Raises EngineError."""
    status, *results = function(*args)
    if status:
        _, text = import_cuda().cudaGetErrorString(status)
        raise EngineError(f"CUDA {function.__name__}", text.decode())
    return results[0] if results else None


class Stream:
    """A stream of its own: the default one would wait for everybody else's work."""

    def __init__(self) -> None:
        self._cuda = import_cuda()
        self.handle: int = int(call(self._cuda.cudaStreamCreate))

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        call(self._cuda.cudaStreamSynchronize, self.handle)

    def close(self) -> None:
        """Give it back."""
        call(self._cuda.cudaStreamDestroy, self.handle)


class Buffer:
    """Memory on the GPU with its counterpart here, page-locked so that copies need no detour."""

    host: Any  # the array: uint8 images or float32 logits

    def __init__(self, shape: tuple[int, ...], dtype: type[np.uint8] | type[np.float32]) -> None:
        self._cuda = import_cuda()
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.device: int = int(call(self._cuda.cudaMalloc, num_bytes))
        self._pinned: int = int(call(self._cuda.cudaMallocHost, num_bytes))
        memory = (ctypes.c_uint8 * num_bytes).from_address(self._pinned)
        self.host = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def to_device(self, images: UInt8Array, stream: Stream) -> None:
        """Copy the rows of `images` into the buffer's first rows on the GPU."""
        self.host[: len(images)] = images
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(
            self._cuda.cudaMemcpyAsync, self.device, self._pinned, images.nbytes, kind,
            stream.handle,
        )  # fmt: skip

    def to_host(self, num_rows: int, stream: Stream) -> FloatArray:
        """The first rows, once the stream has come there: a copy of one's own."""
        rows = self.host[:num_rows]
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(
            self._cuda.cudaMemcpyAsync, self._pinned, self.device, rows.nbytes, kind, stream.handle
        )
        stream.synchronize()
        copy: FloatArray = rows.copy()
        return copy

    def close(self) -> None:
        """Give both memories back."""
        call(self._cuda.cudaFree, self.device)
        call(self._cuda.cudaFreeHost, self._pinned)
