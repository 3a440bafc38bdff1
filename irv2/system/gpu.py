"""The GPUs of this machine, and calls of the CUDA runtime, each of them checked. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irv2.errors import EngineError


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that this process may use."""

    name: str
    capability: str  # e.g. "9.0"
    index: int = 0

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def count_gpus() -> int:
    """How many there are; raises EngineError where there is none, no driver or no cuda-python."""
    cuda = import_cuda()
    try:
        count = int(call(cuda.cudaGetDeviceCount))
    except EngineError as error:
        raise EngineError("CUDA", f"no usable GPU ({error.got})", "an NVIDIA GPU") from error
    if count == 0:
        raise EngineError("CUDA", "no GPU", "an NVIDIA GPU")
    return count


def find_gpu(index: int = 0) -> Gpu:
    """That GPU; raises EngineError as `count_gpus` does, and where there are fewer."""
    count = count_gpus()
    if index >= count:
        raise EngineError("CUDA", f"{count} GPUs are here", f"at least {index + 1}")
    properties = call(import_cuda().cudaGetDeviceProperties, index)
    name = properties.name.decode().rstrip("\0")
    return Gpu(name, f"{properties.major}.{properties.minor}", index)


def use_gpu(index: int) -> None:
    """What this thread allocates and launches from now on is on that GPU."""
    call(import_cuda().cudaSetDevice, index)


def import_cuda() -> Any:  # noqa: ANN401 (a module)
    """The module cuda.bindings.runtime; raises EngineError naming the extra where it is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            "CUDA",
            f"cuda-python can't be imported ({error})",
            way_out='pip install "irv2[gpu]" or "irv2[rtx]"',
        ) from error
    return runtime


def call(function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 (what it returns)
    """Call a function of the CUDA runtime; its result without the status. Raises EngineError."""
    status, *results = function(*args)
    if status:
        cuda = import_cuda()
        cuda.cudaGetLastError()  # it is told here; TensorRT would take it for its own
        _, text = cuda.cudaGetErrorString(status)
        raise EngineError(f"CUDA {function.__name__}", text.decode())
    return results[0] if results else None
