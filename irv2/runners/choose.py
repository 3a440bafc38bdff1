"""The choice of an artefact of a bundle: the fastest that this machine can run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from irv2.errors import BundleError, EngineError
from irv2.manifest import Artifact
from irv2.runners.base import Runner
from irv2.runners.onnx import OnnxRunner, import_onnxruntime
from irv2.runners.parallel import ParallelRunner

# Backends, fastest first, each with its worthwhile precisions, fastest first. ONNX Runtime has no
# bf16 on a CPU, and on CUDA it computes quantised models in float32.
_FASTEST: dict[str, tuple[str, ...]] = {
    "tensorrt": ("int8", "fp16", "bf16", "fp32"),
    "tensorrt_rtx": ("int8", "fp16", "bf16", "fp32"),
    "onnxruntime-cuda": ("fp16", "bf16", "fp32"),
    "onnxruntime-cpu": ("int8", "fp32", "fp16"),
}
BACKENDS = tuple(_FASTEST)
# Two files are int8: ONNX Runtime runs the first faster than float32, the second slower.
INT8_CPU, INT8_TRT = "model.int8-cpu.onnx", "model.int8-trt.onnx"


def open_best(
    folder: Path,
    artifacts: Sequence[Artifact],
    precision: str | None = None,
    backend: str | None = None,
    num_threads: int = 0,
    num_gpus: int = 1,
    num_streams: int = 1,
) -> tuple[Artifact, Runner]:
    """Open the fastest artefact in a bundle's `folder` that has passed the gate and runs here.

    `precision` and `backend` (one of BACKENDS) narrow the choice; evidence counts only for the
    backend that it was taken on. Several GPUs split each batch, and a CPU never stands in for them.
    The runner has as many of `num_streams` as its backend can, which is one on a GPU.
    Raises BundleError that gives the reason against each artefact.
    """
    reasons = []
    pairs = [(a, device) for a in artifacts for device in devices(a)]
    for artifact, device in sorted(pairs, key=lambda pair: _speed_rank(*pair)):
        reason = _why_not(artifact, device, precision, backend)
        if device == "cpu" and num_gpus > 1:
            reason = reason or f"is for a CPU, asked for {num_gpus} GPUs"
        if reason is None:
            try:
                return artifact, open_runner(
                    folder / artifact.file, artifact, device, num_threads, num_gpus, num_streams
                )
            except EngineError as error:
                reason = str(error)
        reasons.append(f"{artifact.file} ({device}): {reason}")
    raise BundleError(
        folder,
        "nothing in it can be served here: " + ", ".join(reasons),
        "an artefact with a passed parity verdict",
        f"run `irv2 verify {folder}` on this machine",
    )


def open_runner(
    path: Path,
    artifact: Artifact,
    device: str,
    num_threads: int = 0,
    num_gpus: int = 1,
    num_streams: int = 1,
) -> Runner:
    """Open the artefact in the file `path`, verified or not, on the CPU or on `num_gpus` GPUs.

    Raises EngineError if this machine can't run it.
    """
    open_on = partial(_open_on, path, artifact, device, num_threads, num_streams)
    if num_gpus == 1:
        return open_on(0)
    return ParallelRunner([partial(open_on, gpu) for gpu in range(num_gpus)])


def _open_on(
    path: Path, artifact: Artifact, device: str, num_threads: int, num_streams: int, gpu: int
) -> Runner:
    if artifact.format == "onnx":
        return OnnxRunner(path, device, num_threads, artifact.max_batch, gpu, num_streams)
    from irv2.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(path, artifact, gpu)


def devices(artifact: Artifact) -> tuple[str, ...]:
    """List the devices on which an artefact may run here, fastest first; opening it may fail."""
    if artifact.format != "onnx":
        return ("cuda",)
    if artifact.file == INT8_CPU:
        return ("cpu",)
    has_gpu = "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
    # The providers include CUDA wherever onnxruntime-gpu is installed, even without a GPU.
    return ("cuda", "cpu") if has_gpu else ("cpu",)


def _why_not(
    artifact: Artifact, device: str, precision: str | None, backend: str | None
) -> str | None:
    runs_on = _backend(artifact, device)
    if artifact.parity is None:
        return "not verified"
    if artifact.parity.verdict != "passed":
        return f"parity {artifact.parity.verdict}"
    if precision and artifact.precision != precision:
        return f"is {artifact.precision}, asked for {precision}"
    if backend and runs_on != backend:
        return f"is {runs_on}, asked for {backend}"
    if artifact.parity.ran_on != runs_on:
        return f"was judged on {artifact.parity.ran_on}"
    if artifact.precision == "bf16" and runs_on == "onnxruntime-cpu":
        return "ONNX Runtime has no bf16 on a CPU"
    is_slow = artifact.precision not in _FASTEST[runs_on] or (artifact.file == INT8_TRT)
    if is_slow and precision is None:
        return f"is no faster on {runs_on} than float32; taken only if asked for"
    return None


def _speed_rank(artifact: Artifact, device: str) -> tuple[int, bool, int]:
    backend = _backend(artifact, device)
    order = _FASTEST[backend]
    known = artifact.precision in order
    rank = order.index(artifact.precision) if known else len(order)
    return list(_FASTEST).index(backend), (artifact.file == INT8_TRT), rank


def _backend(artifact: Artifact, device: str) -> str:
    return f"onnxruntime-{device}" if artifact.format == "onnx" else artifact.format
