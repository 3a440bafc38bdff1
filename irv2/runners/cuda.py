"""The parts of the CUDA runtime that runners need, without torch: streams, memory, graphs.

Objects belong to the GPU that was current for the thread that made them (`use_gpu`).
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from irv2.errors import EngineError
from irv2.system.gpu import call, import_cuda, use_gpu
from irv2.types import UInt8Array


class Stream:
    """A separate stream: the default stream would wait for all other work on the GPU."""

    def __init__(self) -> None:
        self._cuda = import_cuda()
        flag = self._cuda.cudaStreamNonBlocking
        self.handle: int = int(call(self._cuda.cudaStreamCreateWithFlags, flag))

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        call(self._cuda.cudaStreamSynchronize, self.handle)

    def close(self) -> None:
        """Destroy the stream."""
        call(self._cuda.cudaStreamDestroy, self.handle)


class DeviceMemory:
    """Memory on the GPU."""

    def __init__(self, num_bytes: int) -> None:
        self._cuda = import_cuda()
        self.address: int = int(call(self._cuda.cudaMalloc, num_bytes))

    def copy_from(self, array: np.ndarray[Any, Any], stream: Stream, at: int = 0) -> None:
        """Queue a copy of a contiguous array to this memory, from its byte `at` on.

        Page-locked arrays are fetched by the GPU itself and must not change until then.
        """
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(self.address + at, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to(self, array: np.ndarray[Any, Any], stream: Stream) -> None:
        """Queue a copy from the start of this memory that fills a contiguous array."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, self.address, array.nbytes, kind, stream)

    def close(self) -> None:
        """Free the memory."""
        call(self._cuda.cudaFree, self.address)

    def _copy(self, to: int, source: int, num_bytes: int, kind: object, stream: Stream) -> None:
        call(self._cuda.cudaMemcpyAsync, to, source, num_bytes, kind, stream.handle)


class PinnedArray:
    """An array in page-locked memory, which every GPU reads and writes directly."""

    array: Any  # uint8 images or float32 logits

    def __init__(self, shape: tuple[int, ...], dtype: type[np.uint8] | type[np.float32]) -> None:
        self._cuda = import_cuda()
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        portable = self._cuda.cudaHostAllocPortable
        self._address: int = int(call(self._cuda.cudaHostAlloc, num_bytes, portable))
        memory = (ctypes.c_uint8 * num_bytes).from_address(self._address)
        self.array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def close(self) -> None:
        """Free the memory; the array must not be used afterwards."""
        call(self._cuda.cudaFreeHost, self._address)


class Registered:
    """Page-locks an array that lies in other memory, so that every GPU reads it directly."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        """All of it is in memory from then on. Raises EngineError if there is too little."""
        self._cuda, self._array = import_cuda(), array  # which must not be freed before
        portable = self._cuda.cudaHostRegisterPortable
        call(self._cuda.cudaHostRegister, array.ctypes.data, array.nbytes, portable)

    def close(self) -> None:
        """Let the memory be as it was."""
        call(self._cuda.cudaHostUnregister, self._array.ctypes.data)


class PinnedBatches:
    """Page-locked memory for batches of images, which a GPU fetches directly."""

    def __init__(self, gpu: int, image_size: int) -> None:
        self._gpu, self._image_size = gpu, image_size
        self._pinned: list[PinnedArray] = []

    def new(self, num_images: int) -> UInt8Array:
        """Allocate uint8 (num_images, S, S, 3), valid until `close`."""
        use_gpu(self._gpu)
        shape = (num_images, self._image_size, self._image_size, 3)
        self._pinned.append(PinnedArray(shape, np.uint8))
        images: UInt8Array = self._pinned[-1].array
        return images

    def close(self) -> None:
        """Free all of it."""
        for pinned in self._pinned:
            pinned.close()
        self._pinned.clear()


class Graph:
    """Recorded work of a stream, launched again in a single call."""

    def __init__(self, put_work: Callable[[], None], stream: Stream) -> None:
        """Record, without running it, what `put_work` puts on the stream. Raises EngineError."""
        self._cuda = import_cuda()
        # Other threads may allocate meanwhile, for another model or GPU.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._cuda.cudaStreamBeginCapture, stream.handle, mode)
        try:
            put_work()
        except EngineError:
            self._cuda.cudaStreamEndCapture(stream.handle)  # drop the partial recording
            self._cuda.cudaGetLastError()
            raise
        recorded = call(self._cuda.cudaStreamEndCapture, stream.handle)
        self._executable = call(self._cuda.cudaGraphInstantiate, recorded, 0)
        call(self._cuda.cudaGraphDestroy, recorded)

    def launch(self, stream: Stream) -> None:
        """Put the work on the stream."""
        call(self._cuda.cudaGraphLaunch, self._executable, stream.handle)

    def close(self) -> None:
        """Destroy the graph."""
        call(self._cuda.cudaGraphExecDestroy, self._executable)
