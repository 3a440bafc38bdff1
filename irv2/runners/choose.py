"""Which artefact of a bundle this machine can run, and which of them is the fastest."""

from irv2.bundle import Artifact, Bundle
from irv2.errors import BundleError, EngineError
from irv2.runners.base import Runner
from irv2.runners.onnx import OnnxRunner, import_onnxruntime

# Fastest first: on a GPU the engine's precision decides; on a CPU int8 only as its own file.
_SPEED_ORDER = ("tensorrt", "tensorrt_rtx", "onnx")
_PRECISION_ORDER = ("int8", "fp16", "bf16", "fp32")


def open_best(
    bundle: Bundle, precision: str | None = None, backend: str | None = None, num_threads: int = 0
) -> tuple[Artifact, Runner]:  # fmt: skip
    """Open the fastest artefact with a passed verdict that this machine can run.

    `precision` and `backend` (onnxruntime-cpu, onnxruntime-cuda, tensorrt, tensorrt_rtx) narrow
    the choice. Raises BundleError that says of each artefact why it was not taken.
    """
    reasons = []
    for artifact in sorted(bundle.manifest.artifacts, key=_speed_rank):
        for device in devices(artifact):
            reason = _why_not(artifact, device, precision, backend)
            if reason is None:
                try:
                    return artifact, open_runner(bundle, artifact, device, num_threads)
                except EngineError as error:
                    reason = str(error)
            reasons.append(f"{artifact.file} ({device}): {reason}")
    raise BundleError(
        bundle.path, "nothing in it can be served here: " + ", ".join(reasons),
        "an artefact with a passed parity verdict", "run `irv2 verify` on this machine",
    )  # fmt: skip


def open_runner(bundle: Bundle, artifact: Artifact, device: str, num_threads: int = 0) -> Runner:
    """Open one artefact, verified or not. Raises EngineError where this machine can't run it."""
    path = bundle.path / artifact.file
    if artifact.format == "onnx":
        return OnnxRunner(path, device, num_threads, artifact.max_batch)
    from irv2.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(path, artifact)


def devices(artifact: Artifact) -> tuple[str, ...]:
    """Where an artefact might run here, the fastest first; opening it tells the truth."""
    if artifact.format != "onnx":
        return ("cuda",)
    has_gpu = "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
    # That list names CUDA wherever onnxruntime-gpu is installed, with or without a GPU.
    return ("cuda", "cpu") if has_gpu else ("cpu",)


def _why_not(
    artifact: Artifact, device: str, precision: str | None, backend: str | None
) -> str | None:  # fmt: skip
    runs_on = f"onnxruntime-{device}" if artifact.format == "onnx" else artifact.format
    if artifact.parity is None:
        return "not verified"
    if artifact.parity.verdict != "passed":
        return f"parity {artifact.parity.verdict}"
    if precision and artifact.precision != precision:
        return f"is {artifact.precision}, asked for {precision}"
    if backend and runs_on != backend:
        return f"is {runs_on}, asked for {backend}"
    if artifact.format == "onnx" and artifact.precision == "bf16" and device == "cpu":
        return "ONNX Runtime has no bf16 on a CPU"
    return None


def _speed_rank(artifact: Artifact) -> tuple[int, int]:
    return _SPEED_ORDER.index(artifact.format), _PRECISION_ORDER.index(artifact.precision)
