"""A TensorRT engine from an ONNX model, by `tensorrt` or by `tensorrt_rtx`.

TensorRT tunes on the GPU it builds for, so it needs one. TensorRT-RTX builds ahead of time for a
list of compute capabilities, on any machine. Precision is the ONNX model's: networks are strongly
typed, and TF32 is off.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irv2.bundle import Format, write_atomically
from irv2.errors import EngineError
from irv2.progress import Progress
from irv2.runners.cuda import Gpu, find_gpu
from irv2.runners.tensorrt import create, import_tensorrt, make_logger

logger = logging.getLogger(__name__)

OPT_BATCH = 8  # the batch size that the engine is tuned for
WORKSPACE_BYTES = 4 * 2**30
# GeForce and RTX professional cards from Ampere on. 7.5 is left out: no float32 products there.
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


@dataclass(frozen=True, slots=True)
class Flavour:
    """The library that builds, and the GPU it builds on; None where it needs none."""

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


def choose_flavour() -> Flavour:
    """`tensorrt` where it and a GPU are there, else `tensorrt_rtx`.

    Raises EngineError that says what to install where neither can build.
    """
    try:
        return Flavour("tensorrt", gpu=find_gpu(), trt=import_tensorrt("tensorrt"))
    except EngineError as error:
        reason = error
    try:
        flavour = Flavour("tensorrt_rtx", gpu=None, trt=import_tensorrt("tensorrt_rtx"))
    except EngineError as error:
        raise EngineError(
            "--trt", f"nothing here builds an engine ({reason.what}: {reason.got}; "
            f"{error.what}: {error.got})", "tensorrt and a GPU, or tensorrt_rtx",
            'pip install "irv2[gpu]" on a machine with a GPU, or "irv2[rtx]" on any',
        ) from error  # fmt: skip
    logger.info("engine: tensorrt_rtx, since tensorrt can't build here (%s)", reason)
    return flavour


def build_engine(onnx_path: Path, plan_path: Path, max_batch: int, flavour: Flavour) -> None:
    """Write the engine for batches of 1 to `max_batch`; raises EngineError with the reason.

    Ctrl-C and SIGTERM stop it at the next step. The work is done in a thread, since signals are
    handled in the main one: there they would end up in the library's callbacks, which swallow
    every exception.
    """
    stop = threading.Event()
    with Progress(f"build {plan_path.name}", 0, "steps") as bar, ThreadPoolExecutor(1) as pool:
        plan = pool.submit(_build, onnx_path, max_batch, flavour, bar, stop)
        try:
            content = plan.result()
        finally:
            stop.set()
    write_atomically(plan_path, content)


def _build(
    onnx_path: Path, max_batch: int, flavour: Flavour, bar: Progress, stop: threading.Event
) -> bytes:  # fmt: skip
    trt, log = flavour.trt, make_logger(flavour.trt)
    builder = create(trt.Builder, log)
    network = _parse(trt, builder, log, onnx_path)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)  # products of 10-bit mantissas are not float32
    _add_profile(builder, config, network, max_batch)
    if flavour.gpu is None:
        _set_targets(trt, config)
    monitor = _make_monitor(trt, bar, stop)  # the config does not keep it alive
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(onnx_path, f"{flavour.format} can't build it ({log.reason()})")
    return bytes(plan)


def _parse(trt: Any, builder: Any, log: Any, onnx_path: Path) -> Any:  # noqa: ANN401
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(onnx_path))
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    # Some damaged files count as parsed and leave an empty network.
    if not parsed or errors or network.num_inputs != 1 or network.num_outputs != 1:
        reasons = "; ".join(map(_parser_error, errors[:3])) or log.reason()
        raise EngineError(
            onnx_path, f"TensorRT can't read it ({reasons})", "a whole ONNX model of this project"
        )
    return network


def _parser_error(error: Any) -> str:  # noqa: ANN401
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return node + str(error.desc())


def _add_profile(builder: Any, config: Any, network: Any, max_batch: int) -> None:  # noqa: ANN401
    images = network.get_input(0)
    shape = tuple(images.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(
        images.name, (1, *shape), (min(OPT_BATCH, max_batch), *shape), (max_batch, *shape)
    )
    added = config.add_optimization_profile(profile)
    assert added == 0, "TensorRT refused 1 <= opt <= max"


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
            """The interface wants it; the steps say enough."""

    return Monitor()
