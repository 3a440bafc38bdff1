"""A TensorRT engine from an ONNX model, by `tensorrt` or by `tensorrt_rtx`.

TensorRT tunes on the GPU it builds for, so it needs one. TensorRT-RTX builds ahead of time for a
list of compute capabilities, on any machine. Precision is the ONNX model's: networks are strongly
typed, and TF32 is off.
"""

import json
import logging
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from irv2.convert.engine.options import EngineOptions
from irv2.convert.provenance import new_artifact
from irv2.errors import EngineError
from irv2.manifest import Artifact, Format
from irv2.runners.tensorrt import create, import_tensorrt, load_engine, shared_logger
from irv2.system.files import write_atomically
from irv2.system.gpu import Gpu, find_gpu
from irv2.system.progress import Progress

logger = logging.getLogger(__name__)

DEFAULTS = EngineOptions()
# GeForce and RTX professional cards from Ampere on. 7.5 is left out: no float32 products there.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


@dataclass(frozen=True, slots=True)
class Flavour:
    """The library that builds, and the GPU it builds on; None if it needs none."""

    format: Format
    gpu: Gpu | None
    trt: Any  # the module

    @property
    def version(self) -> str:
        """The library's version; a plan works with no other."""
        return str(self.trt.__version__)

    @property
    def target(self) -> str:
        """What the engine runs on, for the bundle's `gpu`."""
        if self.gpu is not None:
            return str(self.gpu)
        return f"RTX GPU of compute capability {', '.join(RTX_CAPABILITIES)}"


def choose_flavour(options: EngineOptions = DEFAULTS) -> Flavour:
    """Choose `tensorrt` if it and a GPU are available, else `tensorrt_rtx`.

    Raises EngineError, which says what to install, if neither can build; UsageError if the one
    that can lacks an option.
    """
    try:
        return Flavour("tensorrt", gpu=find_gpu(), trt=import_tensorrt("tensorrt"))
    except EngineError as error:
        reason = error
    try:
        flavour = Flavour("tensorrt_rtx", gpu=None, trt=import_tensorrt("tensorrt_rtx"))
    except EngineError as error:
        raise EngineError(
            "--trt",
            f"nothing here builds an engine ({reason.what}: {reason.got}; "
            f"{error.what}: {error.got})",
            "tensorrt and a GPU, or tensorrt_rtx",
            'pip install "irv2[gpu]" on a machine with a GPU, or "irv2[rtx]" on any',
        ) from error
    options.require_support(flavour.format)
    logger.info("engine: tensorrt_rtx, since tensorrt can't build here (%s)", reason)
    return flavour


def build_engine(
    onnx_path: Path,
    plan_path: Path,
    max_batch: int,
    flavour: Flavour,
    options: EngineOptions = DEFAULTS,
) -> None:
    """Write the engine for batches of 1 to `max_batch`; raises EngineError with the reason.

    Ctrl-C and SIGTERM stop it at the next step. The work is done in a thread, since signals are
    handled in the main one: there they would end up in the library's callbacks, which swallow
    every exception.
    """
    options.require_support(flavour.format)
    profiles = options.profiles_up_to(max_batch)
    stop = threading.Event()
    with Progress(f"build {plan_path.name}", 0, "steps") as bar, ThreadPoolExecutor(1) as pool:
        # Ctrl-C in Future.result can leave its lock taken, and the thread waiting for it for ever.
        finished: SimpleQueue[Future[bytes]] = SimpleQueue()
        plan = pool.submit(_build, onnx_path, profiles, flavour, options, bar, stop)
        plan.add_done_callback(finished.put)
        try:
            content = finished.get().result()
        finally:
            stop.set()
    write_atomically(plan_path, content)


def engine_artifact(
    onnx_model: Artifact, folder: Path, flavour: Flavour, options: EngineOptions
) -> Artifact:
    """The engine of `onnx_model`, built beside it in `folder`, not yet judged."""
    plan_path = folder / f"model.{onnx_model.precision}.plan"
    logger.info("export: %s with %s %s", plan_path.name, flavour.format, flavour.version)
    build_engine(folder / onnx_model.file, plan_path, onnx_model.max_batch, flavour, options)
    built_with = {
        flavour.format: flavour.version,
        **options.to_record(onnx_model.max_batch),
        **describe_engine(plan_path, flavour, options),
    }
    return new_artifact(
        plan_path,
        onnx_model.precision,
        onnx_model.max_batch,
        onnx_model.sha256,
        built_with,
        format=flavour.format,
        gpu=flavour.target,
    )


def describe_engine(plan_path: Path, flavour: Flavour, options: EngineOptions) -> dict[str, str]:
    """The inspector's summary for the bundle; empty if there is no GPU to load the plan on."""
    if flavour.gpu is None:
        return {}
    _runtime, engine = load_engine(flavour.trt, plan_path, has_own_code=options.version_compatible)
    text = engine.create_engine_inspector().get_engine_information(
        flavour.trt.LayerInformationFormat.JSON
    )
    kinds = Counter(layer["LayerType"] for layer in json.loads(text)["Layers"])
    return {
        "layers": ", ".join(f"{num} {kind}" for kind, num in kinds.most_common()),
        "device_memory_mb": f"{engine.device_memory_size_v2 / 1e6:.0f}",
    }


def _build(
    onnx_path: Path,
    profiles: tuple[tuple[int, int, int], ...],
    flavour: Flavour,
    options: EngineOptions,
    bar: Progress,
    stop: threading.Event,
) -> bytes:
    trt, log = flavour.trt, shared_logger(flavour.trt)
    builder = create(trt.Builder, log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)  # owns the weights: it must outlive the build
    _parse(parser, network, log, onnx_path)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * 2**20)
    config.clear_flag(trt.BuilderFlag.TF32)  # products of 10-bit mantissas are not float32
    for profile in profiles:
        _add_profile(builder, config, network, profile)
    if flavour.format == "tensorrt_rtx":
        _set_targets(trt, config)
    else:
        _set_tensorrt_options(trt, config, options)
    monitor = _make_monitor(trt, bar, stop)  # the config does not keep it alive
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(onnx_path, f"{flavour.format} can't build it ({log.reason()})")
    if options.timing_cache is not None:
        write_atomically(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _parse(parser: Any, network: Any, log: Any, onnx_path: Path) -> None:  # noqa: ANN401
    parsed = parser.parse_from_file(str(onnx_path))
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    # Some damaged files count as parsed and leave an empty network.
    if not parsed or errors or network.num_inputs != 1 or network.num_outputs != 1:
        reasons = "; ".join(map(_parser_error, errors[:3])) or log.reason()
        raise EngineError(
            onnx_path, f"TensorRT can't read it ({reasons})", "a whole ONNX model of this project"
        )


def _parser_error(error: Any) -> str:  # noqa: ANN401
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return node + str(error.desc())


def _add_profile(
    builder: Any,  # noqa: ANN401 (TensorRT's types)
    config: Any,  # noqa: ANN401
    network: Any,  # noqa: ANN401
    profile: tuple[int, int, int],
) -> None:
    images = network.get_input(0)
    shape = tuple(images.shape)[1:]
    bounds = builder.create_optimization_profile()
    bounds.set_shape(images.name, *((num, *shape) for num in profile))
    if config.add_optimization_profile(bounds) < 0:
        raise EngineError("TensorRT", f"refuses batches of {profile}", "MIN <= OPT <= MAX")


def _set_tensorrt_options(trt: Any, config: Any, options: EngineOptions) -> None:  # noqa: ANN401
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    levels = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = {
        "none": levels.NONE,
        "ampere+": levels.AMPERE_PLUS,
        "same-compute-capability": levels.SAME_COMPUTE_CAPABILITY,
    }[options.hardware_compatibility]
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.timing_cache is not None:
        path = options.timing_cache
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise EngineError(path, "is of another TensorRT or GPU", way_out="pass a new file")


def _set_targets(trt: Any, config: Any) -> None:  # noqa: ANN401
    config.num_compute_capabilities = len(RTX_CAPABILITIES)
    for i, capability in enumerate(RTX_CAPABILITIES):
        target = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
        if not config.set_compute_capability(target, i):
            raise EngineError("tensorrt_rtx", f"refuses compute capability {capability}")


def _make_monitor(trt: Any, bar: Progress, stop: threading.Event) -> Any:  # noqa: ANN401
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            bar.expect(num_steps)

        def step_complete(self, name: str, step: int) -> bool:
            bar.advance(1, phase=name)
            return not stop.is_set()

        def phase_finish(self, name: str) -> None:
            """Required by the interface; the steps say enough."""

    return Monitor()
