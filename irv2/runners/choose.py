"""The choice of an artefact of a bundle and its backend: the fastest proven for this machine."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from irv2.errors import BundleError, EngineError
from irv2.manifest import Artifact, Evidence
from irv2.runners import onnx, openvino, speed
from irv2.runners.base import Runner, default_streams
from irv2.runners.parallel import ParallelRunner
from irv2.system.machine import instruction_set, num_cores

logger = logging.getLogger(__name__)

# Backends and their precisions, likely fastest first: the order where no speed is recorded. What
# is not named is no faster than float32. ONNX Runtime has no bf16 on a CPU, and on CUDA it computes
# quantised models in float32.
_LIKELY: dict[str, tuple[str, ...]] = {
    "tensorrt": ("int8", "fp16", "bf16", "fp32"),
    "tensorrt_rtx": ("int8", "fp16", "bf16", "fp32"),
    "onnxruntime-cuda": ("fp16", "bf16", "fp32"),
    openvino.BACKEND: ("int8", "bf16", "fp32"),
    "onnxruntime-cpu": ("int8", "fp32", "fp16"),
}
BACKENDS = tuple(_LIKELY)
NO_BACKEND = "no backend that is installed runs it"
# Two files are int8: ONNX Runtime runs the first faster than float32, the second slower.
INT8_CPU, INT8_TRT = "model.int8-cpu.onnx", "model.int8-trt.onnx"


class Choice(NamedTuple):
    """An artefact, the evidence for it on the backend that runs it here, and how it was chosen."""

    artifact: Artifact
    evidence: Evidence
    runner: Runner
    how: str


class _Failure(NamedTuple):
    what: str  # the artefact and backend
    reason: str


class _Candidate(NamedTuple):
    artifact: Artifact
    evidence: Evidence


def open_best(
    folder: Path,
    artifacts: Sequence[Artifact],
    precision: str | None = None,
    backend: str | None = None,
    num_threads: int = 0,
    num_gpus: int = 1,
    num_streams: int | None = None,
    *,
    measure: bool = False,
) -> Choice:
    """Open the fastest artefact in a bundle's `folder` that has passed the gate and runs here.

    `precision` and `backend` (one of BACKENDS, or cpu or cuda) narrow the choice. Evidence counts
    only for the backend and kind of processor that it was taken on. The fastest is the one with the
    most images per second on record, or by a measurement now if `measure`. Several GPUs split each
    batch, and a CPU never stands in for them. The runner has as many of `num_streams` as its
    backend can, which is one on a GPU; None takes what suits the backend. Raises BundleError that
    gives the reason against each artefact.
    """
    reasons: list[str] = []
    failures: list[_Failure] = []  # of what was proven, and should have run
    candidates = []
    for artifact in artifacts:
        possible = backends(artifact) + _missing_backends(artifact)
        if not possible:
            reasons.append(f"{artifact.file}: {NO_BACKEND}")
        for runs_on in possible:
            found = _evidence_or_reason(artifact, runs_on, precision, backend, num_gpus)
            if isinstance(found, str):
                reasons.append(f"{artifact.file} ({runs_on}): {found}")
            else:
                candidates.append(_Candidate(artifact, found))

    def opened() -> Iterator[Choice]:
        for artifact, evidence in _fastest_first(candidates):
            try:
                path, runs_on = folder / artifact.file, evidence.backend
                runner = open_runner(
                    path, artifact, runs_on, num_threads, num_gpus, num_streams, use_cache=True
                )
            except EngineError as error:
                failures.append(_Failure(f"{artifact.file} ({evidence.backend})", str(error)))
            else:
                rate = evidence.images_per_s
                how = "by order" if rate is None else f"recorded {rate:g} images/s"
                yield Choice(artifact, evidence, runner, how)

    best = _measured_best(opened(), failures) if measure else next(opened(), None)
    if best is None:
        raise BundleError(
            folder,
            "nothing in it can be served here: "
            + ", ".join([*reasons, *(f"{what}: {reason}" for what, reason in failures)]),
            "an artefact with a passed parity verdict",
            f"run `irv2 verify {folder}` on this machine",
        )
    # The fastest of each reason: a library that is missing is the reason against several.
    for reason, what in {reason: what for what, reason in reversed(failures)}.items():
        logger.warning("passed over: %s: %s", what, reason)
    judged_with, here = best.evidence.backend_version, best.runner.backend_version
    if judged_with and judged_with != here:
        logger.info(
            "%s was judged on %s %s, here is %s: run `irv2 verify %s` to judge it with that",
            *(best.artifact.file, best.evidence.backend, judged_with, here, folder),
        )
    return best


def open_runner(
    path: Path,
    artifact: Artifact,
    backend: str,
    num_threads: int = 0,
    num_gpus: int = 1,
    num_streams: int | None = None,
    *,
    use_cache: bool = False,
) -> Runner:
    """Open the artefact in the file `path`, verified or not, on one of its `backends`.

    `num_threads` 0 takes one per core, `num_streams` None as many as suit backend and threads.
    `use_cache` is for what will be opened again: what the engine compiles is kept for the user.
    Raises EngineError if this machine can't run it.
    """
    num_streams = num_streams or default_streams(backend, num_threads or num_cores())
    open_on = partial(_open_on, path, artifact, backend, num_threads, num_streams, use_cache)
    if num_gpus == 1:
        return open_on(0)
    return ParallelRunner([partial(open_on, gpu) for gpu in range(num_gpus)])


def _open_on(
    path: Path,
    artifact: Artifact,
    backend: str,
    num_threads: int,
    num_streams: int,
    use_cache: bool,
    gpu: int,
) -> Runner:
    if backend == openvino.BACKEND:
        return openvino.OpenVinoRunner(
            path,
            artifact.precision,
            num_threads,
            num_streams,
            artifact.max_batch,
            use_cache=use_cache,
        )
    if artifact.format == "onnx":
        device = backend.removeprefix("onnxruntime-")
        return onnx.OnnxRunner(path, device, num_threads, artifact.max_batch, gpu, num_streams)
    from irv2.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(path, artifact, gpu)


def backends(artifact: Artifact) -> list[str]:
    """List the backends that may run an artefact here, GPUs first; opening it may fail.

    Raises EngineError if it is an ONNX model and nothing is installed that runs such models.
    """
    if artifact.format != "onnx":
        return [artifact.format]
    found = []
    has_onnxruntime = onnx.is_installed() or not openvino.is_installed()
    # The providers include CUDA wherever onnxruntime-gpu is installed, even without a GPU.
    providers = onnx.import_onnxruntime().get_available_providers() if has_onnxruntime else []
    if "CUDAExecutionProvider" in providers and artifact.file != INT8_CPU:
        found.append("onnxruntime-cuda")
    has_openvino = openvino.is_installed() and artifact.precision in openvino.PRECISIONS
    if has_openvino:
        found.append(openvino.BACKEND)
    # There it is slower than float32, and judging takes as long; bf16 it does not have at all.
    is_slow = has_openvino and (artifact.file == INT8_TRT or artifact.precision == "bf16")
    if has_onnxruntime and not is_slow:
        found.append("onnxruntime-cpu")
    return found


def _missing_backends(artifact: Artifact) -> list[str]:
    """List the backends that the artefact was judged on and that are not installed here."""
    installed = {openvino.BACKEND: openvino.is_installed(), "onnxruntime-cpu": onnx.is_installed()}
    judged_on = {row.backend for row in artifact.known}
    return [name for name, is_here in installed.items() if not is_here and name in judged_on]


def _evidence_or_reason(
    artifact: Artifact, runs_on: str, precision: str | None, backend: str | None, num_gpus: int
) -> Evidence | str:
    """The evidence by which the artefact may be served on `runs_on`, or why it may not."""
    if precision and artifact.precision != precision:
        return f"is {artifact.precision}, asked for {precision}"
    if backend and not runs_on.endswith(backend):
        return f"is {runs_on}, asked for {backend}"
    if runs_on.endswith("-cpu") and num_gpus > 1:
        return f"is for a CPU, asked for {num_gpus} GPUs"
    if not artifact.known:
        return "not verified"
    rows = [row for row in artifact.known if row.backend == runs_on]
    if not rows:
        return f"was judged on {', '.join(sorted({row.backend for row in artifact.known}))}"
    try:
        here = instruction_set(runs_on)
    except EngineError as error:
        return str(error)
    by_kind = {row.instruction_set: row for row in rows}
    evidence = by_kind.get(here) or by_kind.get("")  # of an older bundle, for any processor
    if evidence is None:
        return f"was judged with {', '.join(by_kind)}, this processor has {here}"
    if evidence.parity.verdict != "passed":
        return f"parity {evidence.parity.verdict}"
    if artifact.precision == "bf16" and runs_on == "onnxruntime-cpu":
        return "ONNX Runtime has no bf16 on a CPU"
    is_likely = artifact.precision in _LIKELY[runs_on] and artifact.file != INT8_TRT
    if evidence.images_per_s is None and precision is None and not is_likely:
        return f"is no faster on {runs_on} than float32; taken only if asked for"
    return evidence


def _fastest_first(candidates: list[_Candidate]) -> list[_Candidate]:
    """By the speeds on record if all have one, else by what is likely."""
    rates = [candidate.evidence.images_per_s for candidate in candidates]
    if None in rates:
        return sorted(candidates, key=_likely_rank)
    return sorted(candidates, key=lambda each: -(each.evidence.images_per_s or 0))


def _likely_rank(candidate: _Candidate) -> tuple[int, bool, int]:
    artifact, evidence = candidate
    order = _LIKELY[evidence.backend]
    rank = order.index(artifact.precision) if artifact.precision in order else len(order)
    return BACKENDS.index(evidence.backend), artifact.file == INT8_TRT, rank


def _measured_best(opened: Iterator[Choice], failures: list[_Failure]) -> Choice | None:
    """Time one after the other; two at most are open at a time. `failures` gets what fails."""
    best, best_rate = None, 0.0
    for choice in opened:
        try:
            [rate] = speed.images_per_s([choice.runner])
        except EngineError as error:
            what = f"{choice.artifact.file} ({choice.evidence.backend})"
            failures.append(_Failure(what, str(error)))
            rate = 0.0
        slower: Choice | None = choice
        if rate > best_rate:
            best, slower, best_rate = choice, best, rate
        if slower is not None:
            slower.runner.close()
    return best and best._replace(how=f"measured {best_rate:g} images/s")
