"""GPUs and a TensorRT engine that exist in this process's memory alone.

Addresses are real and copies are made at once; a graph is a list of what was called while
recording. The engine's logits are an image's first byte, read at the addresses it was given.
"""

# ruff: noqa: N802, N815 (the libraries' names)

import ctypes
import threading
from collections.abc import Callable
from types import SimpleNamespace

SIDE, NUM_CLASSES = 2, 3
IMAGE_BYTES = SIDE * SIDE * 3


class FakeCuda:
    """What runners use of cuda.bindings.runtime. `names` are the GPUs'."""

    cudaStreamNonBlocking = cudaHostAllocPortable = cudaHostRegisterPortable = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *names: str) -> None:
        self.names = names
        self.memory = {}  # address -> memory, the GPU it is on
        self.num_graphs, self.copied_from = 0, set()
        self.registered = {}  # address -> size in bytes
        self._thread = threading.local()

    @property
    def gpu(self) -> int:
        return getattr(self._thread, "gpu", 0)

    @property
    def recording(self) -> list[Callable[[], None]] | None:
        return getattr(self._thread, "recording", None)

    def cudaSetDevice(self, index):
        self._thread.gpu = index
        return (0,)

    def cudaGetDeviceCount(self):
        return 0, len(self.names)

    def cudaGetDeviceProperties(self, index):
        return 0, SimpleNamespace(name=self.names[index].encode() + b"\0", major=9, minor=0)

    def cudaMalloc(self, num_bytes):
        memory = ctypes.create_string_buffer(num_bytes)
        self.memory[ctypes.addressof(memory)] = memory, self.gpu
        return 0, ctypes.addressof(memory)

    def cudaHostAlloc(self, num_bytes, flags):
        return self.cudaMalloc(num_bytes)

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaHostRegister(self, address, num_bytes, flags):
        assert address not in self.registered, "the real one refuses it"
        self.registered[address] = num_bytes
        return (0,)

    def cudaHostUnregister(self, address):
        del self.registered[address]
        return (0,)

    def cudaMemcpyAsync(self, to, source, num_bytes, kind, stream):
        assert self.recording is None
        self.copied_from.add(source)
        ctypes.memmove(to, source, num_bytes)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags):
        return 0, 1

    def cudaStreamSynchronize(self, stream):
        return (0,)

    cudaStreamDestroy = cudaGraphDestroy = cudaStreamSynchronize

    def cudaStreamBeginCapture(self, stream, mode):
        self._thread.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        recorded, self._thread.recording = self.recording, None
        return 0, recorded

    def cudaGraphInstantiate(self, recorded, flags):
        self.num_graphs += 1
        return 0, recorded

    def cudaGraphLaunch(self, graph, stream):
        for work in graph:
            work()
        return (0,)

    def cudaGraphExecDestroy(self, graph):
        self.num_graphs -= 1
        return (0,)

    def cudaGetLastError(self):
        return (0,)


class FakeTensorRT:
    """What runners use of the module; the engine refuses to be recorded from `refuses` on."""

    __version__ = "11.4"
    __name__ = "tensorrt"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    class ILogger:
        ERROR = 1

    def __init__(self, cuda: FakeCuda, profiles=((1, 8),), refuses: int = 1000) -> None:
        self.cuda, self.profiles, self.refuses = cuda, profiles, refuses
        self.ran: list[tuple[int, int]] = []  # batch and profile

    def Runtime(self, logger):
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: FakeEngine(self))


class FakeEngine:
    device_memory_size_v2 = 64

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt, self.num_optimization_profiles = trt, len(trt.profiles)

    def get_tensor_shape(self, name):
        return {"images": (-1, SIDE, SIDE, 3), "logits": (-1, NUM_CLASSES)}[name]

    def get_tensor_profile_shape(self, name, profile):
        least, most = self._trt.profiles[profile]
        return [(num, SIDE, SIDE, 3) for num in (least, most, most)]

    def create_execution_context(self, strategy):
        return FakeContext(self._trt)


class FakeContext:
    active_optimization_profile = 0

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt, self._addresses = trt, {}

    def set_device_memory(self, address, num_bytes):
        assert len(self._trt.cuda.memory[address][0]) == num_bytes

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def set_optimization_profile_async(self, profile, stream):
        self.active_optimization_profile = profile
        return True

    def set_input_shape(self, name, shape):
        self._num = shape[0]
        return True

    def execute_async_v3(self, stream):
        trt, num, profile = self._trt, self._num, self.active_optimization_profile
        if trt.cuda.recording is None:
            self._run(num, profile)
            return True
        if num >= trt.refuses:
            return False
        trt.cuda.recording.append(lambda: self._run(num, profile))
        return True

    def _run(self, num, profile):
        images, gpu = self._trt.cuda.memory[self._addresses["images"]]
        assert gpu == self._trt.cuda.gpu, "a launch on another GPU than the memory's"
        logits = ctypes.cast(self._addresses["logits"], ctypes.POINTER(ctypes.c_float))
        for i in range(num * NUM_CLASSES):
            logits[i] = images.raw[i // NUM_CLASSES * IMAGE_BYTES]
        self._trt.ran.append((num, profile))
