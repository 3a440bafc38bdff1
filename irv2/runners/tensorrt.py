"""TensorRT and TensorRT-RTX, which share one Python interface.

A plan fits one version of its library and one kind of GPU. Both are compared with the bundle
before the plan is loaded, since the library's own refusal says less.

For small batches, launching the network's kernels one by one takes the processor longer than the
work takes the GPU. So batches of the usual sizes are recorded as CUDA graphs, each launched in one
call, and batches of other sizes are padded.
"""

import importlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from irv2.errors import EngineError
from irv2.manifest import Artifact, Format
from irv2.runners.base import Runner, usual_sizes
from irv2.runners.cuda import DeviceMemory, Graph, PinnedArray, PinnedBatches, Registered, Stream
from irv2.system.gpu import Gpu, find_gpu, use_gpu
from irv2.system.stop import raise_if_stopped
from irv2.types import FloatArray, UInt8Array

logger = logging.getLogger(__name__)

EXTRAS: dict[str, str] = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}
_REBUILD = "irv2 verify --rebuild makes it again for this machine"


class _Recorded(NamedTuple):
    """The graph for batches of one size, and the context that it refers to."""

    graph: Graph
    context: Any


class TensorRTRunner(Runner):
    """Runs a plan of `irv2-export --trt` on one stream of one GPU."""

    def __init__(self, plan_path: Path, artifact: Artifact, gpu: int = 0) -> None:
        """Load the plan onto GPU `gpu`; raises EngineError that says why it can't run there."""
        trt = import_tensorrt(artifact.format)
        check_version(plan_path, artifact, trt.__version__)
        check_gpu(plan_path, artifact, find_gpu(gpu))
        self._gpu = gpu
        use_gpu(gpu)
        self._trt, self._log = trt, shared_logger(trt)
        self._runtime, self._engine = load_engine(
            trt, plan_path, has_own_code="version_compatible" in artifact.built_with
        )
        self.backend, self.backend_version = artifact.format, str(trt.__version__)
        self.max_batch = artifact.max_batch
        self.image_size = int(self._engine.get_tensor_shape("images")[1])
        self.num_classes = int(self._engine.get_tensor_shape("logits")[1])
        bounds = [
            self._engine.get_tensor_profile_shape("images", i)
            for i in range(self._engine.num_optimization_profiles)
        ]
        self._profiles = [(int(least[0]), int(most[0])) for least, _, most in bounds]
        self._stream = Stream()
        self._images = DeviceMemory(self.max_batch * self.image_size**2 * 3)
        self._logits = DeviceMemory(self.max_batch * self.num_classes * 4)
        self._activations = DeviceMemory(self._engine.device_memory_size_v2)
        self._answers = PinnedArray((self.max_batch, self.num_classes), np.float32)
        self._pinned = PinnedBatches(gpu, self.image_size)
        self._registered: list[Registered] = []
        self._context = self._new_context()
        # TensorRT-RTX compiles kernels in the background for the shapes that it has seen: early
        # recordings would stay slow. It has its own graph strategy, which is left alone.
        self._recorded = self._record_usual_sizes() if self.backend == "tensorrt" else {}

    def run(self, images: UInt8Array) -> FloatArray:
        """Map uint8 RGB (N, S, S, 3) to float32 logits (N, num_classes); raises EngineError."""
        use_gpu(self._gpu)  # any thread may call
        self._images.copy_from(np.ascontiguousarray(images), self._stream)
        return self._run_copied(len(images))

    def run_gathered(self, images: Sequence[UInt8Array]) -> FloatArray:
        """Let the GPU fetch each uint8 RGB (S, S, 3) by itself; raises EngineError."""
        use_gpu(self._gpu)
        for number, image in enumerate(images):
            self._images.copy_from(image, self._stream, number * image.nbytes)
        return self._run_copied(len(images))

    def register(self, images: UInt8Array) -> None:
        """Page-lock this memory until `close`; raises EngineError."""
        use_gpu(self._gpu)
        self._registered.append(Registered(images))
        self.gathers = True

    def _run_copied(self, num_images: int) -> FloatArray:
        # The rows beyond the images still hold earlier ones, whose logits are not read.
        size = next((size for size in self._recorded if size >= num_images), None)
        if size is None:
            self._launch(self._context, num_images)
        else:
            self._recorded[size].graph.launch(self._stream)
        answers = self._answers.array[:num_images]
        self._logits.copy_to(answers, self._stream)
        self._stream.synchronize()
        logits: FloatArray = answers.copy()
        return logits

    def batch_memory(self, num_images: int) -> UInt8Array:
        """Allocate uint8 (num_images, S, S, 3), page-locked, so that the GPU fetches it itself."""
        return self._pinned.new(num_images)

    def close(self) -> None:
        """Free everything on the GPU, each object before those it refers to."""
        use_gpu(self._gpu)
        for graph in [recorded.graph for recorded in self._recorded.values()]:
            graph.close()
        self._recorded.clear()
        del self._context
        for registered in self._registered:
            registered.close()
        for memory in (self._images, self._logits, self._activations, self._answers, self._pinned):
            memory.close()
        self._stream.close()
        del self._engine, self._runtime

    def _new_context(self) -> Any:  # noqa: ANN401 (a class of a module chosen at run time)
        """Make a context; all share the same memory, one after the other on the same stream."""
        user_managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(user_managed)
        if context is None:
            raise EngineError(self.backend, f"gives no context ({self._log.reason()})")
        context.set_device_memory(self._activations.address, self._engine.device_memory_size_v2)
        self._require(context.set_tensor_address("images", self._images.address))
        self._require(context.set_tensor_address("logits", self._logits.address))
        return context

    def _launch(self, context: Any, num_images: int) -> None:  # noqa: ANN401
        """Put a batch on the stream, with the profile and shape for its size."""
        profile = choose_profile(self._profiles, num_images)
        if profile != context.active_optimization_profile:
            self._require(context.set_optimization_profile_async(profile, self._stream.handle))
        shape = (num_images, self.image_size, self.image_size, 3)
        self._require(context.set_input_shape("images", shape))
        self._require(context.execute_async_v3(self._stream.handle))

    def _record_usual_sizes(self) -> dict[int, _Recorded]:
        """Record graphs by size, ascending; stop at a size that the engine refuses."""
        recorded = {}
        for size in usual_sizes(self.max_batch):
            try:
                recorded[size] = self._record(size)
            except EngineError as error:
                logger.warning("no_cuda_graph batches_from=%d error=%s", size, error)
                break
        return recorded

    def _record(self, size: int) -> _Recorded:
        """Record a graph in its own context, unused otherwise: other shapes would change it."""
        context = self._new_context()
        self._launch(context, size)  # loads kernels, and does the work that only a new shape needs
        self._stream.synchronize()
        launch = context.execute_async_v3
        graph = Graph(lambda: self._require(launch(self._stream.handle)), self._stream)
        return _Recorded(graph, context)

    def _require(self, succeeded: bool) -> None:
        if not succeeded:  # TensorRT returns False and logs the reason
            raise EngineError(self.backend, self._log.reason())


def choose_profile(profiles: Sequence[tuple[int, int]], num_images: int) -> int:
    """Return the index of the (smallest, largest) batch range that fits `num_images` most tightly.

    Raises EngineError if none does.
    """
    fitting = [
        (largest, i)
        for i, (smallest, largest) in enumerate(profiles)
        if smallest <= num_images <= largest
    ]
    if not fitting:
        raise EngineError("engine", f"no profile holds a batch of {num_images}")
    return min(fitting)[1]


def load_engine(trt: Any, plan_path: Path, *, has_own_code: bool) -> tuple[Any, Any]:  # noqa: ANN401
    """Load a plan: returns the runtime and its engine. Raises EngineError that says what is wrong.

    A version-compatible plan contains code, which runs only if `has_own_code` allows it.
    """
    log = shared_logger(trt)
    runtime = create(trt.Runtime, log)
    plan = plan_path.read_bytes()
    if problems := header_problems(trt, runtime, plan):
        raise EngineError(
            plan_path, f"its header says {problems}", f"a plan of {trt.__name__}", _REBUILD
        )
    log.forget()
    runtime.engine_host_code_allowed = has_own_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(plan_path, f"can't be loaded ({log.reason()})", way_out=_REBUILD)
    return runtime, engine


def header_problems(trt: Any, runtime: Any, plan: bytes) -> str:  # noqa: ANN401
    """Say why a plan's header rules it out on this machine; empty if it does not.

    Only TensorRT-RTX can tell. Without a driver it calls a plan invalid without giving a reason;
    loading the plan then says more.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    validity, flags = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if validity != trt.EngineValidity.INVALID:
        return ""
    known = trt.EngineInvalidityDiagnostics.__members__
    names = [name for name, flag in known.items() if flags & int(flag)]
    return ", ".join(names).lower().replace("_", " ")


def import_tensorrt(flavour: Format) -> Any:  # noqa: ANN401 (a module)
    """Import tensorrt or tensorrt_rtx; raises EngineError naming its extra if that fails."""
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:  # OSError: one of its libraries is missing
        raise_if_stopped()
        way_out = f'pip install "irv2[{EXTRAS[flavour]}]"'
        raise EngineError(flavour, f"can't be imported ({error})", way_out=way_out) from error


def check_version(plan_path: Path, artifact: Artifact, version: str) -> None:
    """Raise EngineError if the plan was built with another version of its library.

    A version-compatible plan runs with later versions too.
    """
    built_with = artifact.built_with.get(artifact.format, "an unknown version")
    is_newer = _numbers(version) > _numbers(built_with)
    if built_with == version or (is_newer and "version_compatible" in artifact.built_with):
        return
    raise EngineError(
        plan_path,
        f"was built with {artifact.format} {built_with}; here is {version}",
        way_out=f"install {artifact.format}=={built_with} or {_REBUILD}",
    )


def check_gpu(plan_path: Path, artifact: Artifact, gpu: Gpu) -> None:
    """Raise EngineError if the plan was built for another GPU.

    TensorRT's plans are for one model of GPU, unless built to be compatible with more;
    TensorRT-RTX's are for compute capabilities.
    """
    built_for = artifact.gpu or ""
    level = artifact.built_with.get("hardware_compatibility")
    if artifact.format == "tensorrt_rtx":
        fits = gpu.capability in built_for.replace(",", "").split()
    elif level == "ampere+":
        fits = _numbers(gpu.capability) >= [8, 0]
    elif level == "same-compute-capability":
        fits = built_for.endswith(f"(compute capability {gpu.capability})")
    else:
        fits = built_for == str(gpu)
    if not fits:
        here = f"here is {gpu}" if gpu.index == 0 else f"GPU {gpu.index} is {gpu}"
        raise EngineError(plan_path, f"was built for {built_for}; {here}", way_out=_REBUILD)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


@cache
def shared_logger(trt: Any) -> Any:  # noqa: ANN401 (a class of a module that is chosen at run time)
    """Return the logger that remembers errors, since failed calls only return None or False.

    The process has only one: the library keeps the first logger it is given while any of its
    objects is alive, and uses it for all others too.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lines: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            if severity <= trt.ILogger.ERROR:
                self._lines.append(message)

        def forget(self) -> None:
            """Forget the errors so far, before something new begins."""
            self._lines.clear()

        def reason(self) -> str:
            """Return the first error since the last call, as it causes the later ones."""
            line = self._lines[0] if self._lines else "it gives no reason"
            self.forget()
            return line

    return Logger()


def create(factory: Callable[[Any], Any], logger: Any) -> Any:  # noqa: ANN401
    """Create a Builder or Runtime; raises EngineError if the library can't start."""
    logger.forget()
    try:
        return factory(logger)
    except TypeError as error:  # what pybind11 makes of a null pointer
        raise EngineError(
            "TensorRT", f"can't start ({logger.reason()})", "a working NVIDIA driver"
        ) from error
