"""The GPUs of this machine, and checked calls of the CUDA runtime, without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from irv2.errors import EngineError
from irv2.system.stop import raise_if_stopped


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that this process may use."""

    name: str
    capability: str  # e.g. "9.0"
    index: int = 0

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def count_gpus() -> int:
    """Count the GPUs; raises EngineError if there is no GPU, no driver or no cuda-python."""
    cuda = import_cuda()
    try:
        count = int(call(cuda.cudaGetDeviceCount))
    except EngineError as error:
        raise EngineError("CUDA", f"no usable GPU ({error.got})", "an NVIDIA GPU") from error
    if count == 0:
        raise EngineError("CUDA", "no GPU", "an NVIDIA GPU")
    return count


def find_gpu(index: int = 0) -> Gpu:
    """Describe GPU `index`; raises EngineError like `count_gpus`, and if there is no such GPU."""
    count = count_gpus()
    if index >= count:
        raise EngineError("CUDA", f"found {count} GPUs", f"at least {index + 1}")
    properties = call(import_cuda().cudaGetDeviceProperties, index)
    name = properties.name.decode().rstrip("\0")
    return Gpu(name, f"{properties.major}.{properties.minor}", index)


def use_gpu(index: int) -> None:
    """Make this thread allocate and launch on that GPU from now on."""
    call(import_cuda().cudaSetDevice, index)


def import_cuda() -> Any:  # noqa: ANN401 (a module)
    """Import cuda.bindings.runtime; raises EngineError naming the extra if it is missing."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise_if_stopped()
        raise EngineError(
            "CUDA",
            f"cuda-python can't be imported ({error})",
            way_out='pip install "irv2[gpu]" or "irv2[rtx]"',
        ) from error
    return runtime


def call(function: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 (what it returns)
    """Call a function of the CUDA runtime and return its result; raises EngineError on failure."""
    status, *results = function(*args)
    if status:
        cuda = import_cuda()
        cuda.cudaGetLastError()  # clear it: TensorRT would take it for its own
        _, text = cuda.cudaGetErrorString(status)
        raise EngineError(f"CUDA {function.__name__}", text.decode())
    return results[0] if results else None
