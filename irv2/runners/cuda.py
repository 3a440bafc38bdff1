"""What a runner needs of the CUDA runtime: streams, memory, graphs. No torch.

Objects belong to the GPU that the thread used when it made them (`use_gpu`).
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from irv2.errors import EngineError
from irv2.system.gpu import call, import_cuda, use_gpu
from irv2.types import UInt8Array


class Stream:
    """A stream of its own: the default one would wait for everybody else's work."""

    def __init__(self) -> None:
        self._cuda = import_cuda()
        flag = self._cuda.cudaStreamNonBlocking
        self.handle: int = int(call(self._cuda.cudaStreamCreateWithFlags, flag))

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        call(self._cuda.cudaStreamSynchronize, self.handle)

    def close(self) -> None:
        """Give it back."""
        call(self._cuda.cudaStreamDestroy, self.handle)


class DeviceMemory:
    """Memory on the GPU."""

    def __init__(self, num_bytes: int) -> None:
        self._cuda = import_cuda()
        self.address: int = int(call(self._cuda.cudaMalloc, num_bytes))

    def copy_from(self, array: np.ndarray[Any, Any], stream: Stream) -> None:
        """Copy a contiguous array to its start; from page-locked memory the GPU fetches it itself.

        Such memory must stay as it is until the stream has come there.
        """
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(self.address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_to(self, array: np.ndarray[Any, Any], stream: Stream) -> None:
        """Fill a contiguous array from its start, once the stream has come there."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, self.address, array.nbytes, kind, stream)

    def close(self) -> None:
        """Give it back."""
        call(self._cuda.cudaFree, self.address)

    def _copy(self, to: int, source: int, num_bytes: int, kind: object, stream: Stream) -> None:
        call(self._cuda.cudaMemcpyAsync, to, source, num_bytes, kind, stream.handle)


class PinnedArray:
    """An array in page-locked memory, from and to which every GPU copies by itself."""

    array: Any  # uint8 images or float32 logits

    def __init__(self, shape: tuple[int, ...], dtype: type[np.uint8] | type[np.float32]) -> None:
        self._cuda = import_cuda()
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        portable = self._cuda.cudaHostAllocPortable
        self._address: int = int(call(self._cuda.cudaHostAlloc, num_bytes, portable))
        memory = (ctypes.c_uint8 * num_bytes).from_address(self._address)
        self.array = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def close(self) -> None:
        """Give it back; the array is not used afterwards."""
        call(self._cuda.cudaFreeHost, self._address)


class PinnedBatches:
    """Page-locked memory for batches of images, from which a GPU fetches them by itself."""

    def __init__(self, gpu: int, image_size: int) -> None:
        self._gpu, self._image_size = gpu, image_size
        self._pinned: list[PinnedArray] = []

    def new(self, num_images: int) -> UInt8Array:
        """uint8 (num_images, S, S, 3), until `close`."""
        use_gpu(self._gpu)
        shape = (num_images, self._image_size, self._image_size, 3)
        self._pinned.append(PinnedArray(shape, np.uint8))
        images: UInt8Array = self._pinned[-1].array
        return images

    def close(self) -> None:
        """Give all of it back."""
        for pinned in self._pinned:
            pinned.close()
        self._pinned.clear()


class Graph:
    """Work that was put on a stream once, recorded, and is launched again in a single call."""

    def __init__(self, put_work: Callable[[], None], stream: Stream) -> None:
        """Record what `put_work` puts on the stream, which does not run. Raises EngineError."""
        self._cuda = import_cuda()
        # Other threads may allocate meanwhile, for another model or GPU.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._cuda.cudaStreamBeginCapture, stream.handle, mode)
        try:
            put_work()
        except EngineError:
            self._cuda.cudaStreamEndCapture(stream.handle)  # half a recording is of no use
            self._cuda.cudaGetLastError()
            raise
        recorded = call(self._cuda.cudaStreamEndCapture, stream.handle)
        self._executable = call(self._cuda.cudaGraphInstantiate, recorded, 0)
        call(self._cuda.cudaGraphDestroy, recorded)

    def launch(self, stream: Stream) -> None:
        """Put the work on the stream."""
        call(self._cuda.cudaGraphLaunch, self._executable, stream.handle)

    def close(self) -> None:
        """Give it back."""
        call(self._cuda.cudaGraphExecDestroy, self._executable)
