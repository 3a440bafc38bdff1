"""The choice of an artefact of a bundle and its backend: the fastest proven for this machine."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from irv2.errors import BundleError, EngineError
from irv2.manifest import Artifact, Evidence
from irv2.runners import onnx, openvino, speed
from irv2.runners.backends import BACKENDS, LIKELY, default_streams
from irv2.runners.base import Runner
from irv2.runners.parallel import ParallelRunner
from irv2.system.machine import instruction_set, num_cores

logger = logging.getLogger(__name__)

# Two timings of one file differ by up to as much; below that, answers count before speed.
NOISE = 0.03
NO_BACKEND = "no backend that is installed runs it"
# Two files are int8: ONNX Runtime runs the first faster than float32, the second slower.
INT8_CPU, INT8_TRT = "model.int8-cpu.onnx", "model.int8-trt.onnx"


class Choice(NamedTuple):
    """An artefact, the evidence for it on the backend that runs it here, and how it was chosen."""

    artifact: Artifact
    evidence: Evidence
    runner: Runner
    how: str


class Candidate(NamedTuple):
    """An artefact, and the evidence by which a backend may serve it here."""

    artifact: Artifact
    evidence: Evidence


class Rejection(NamedTuple):
    """What may not be served, and why; `is_unjudged` if a verdict of this machine is missing."""

    file: str
    backend: str  # empty if nothing that is installed runs it
    reason: str
    is_unjudged: bool = False

    @property
    def what(self) -> str:
        """The artefact and its backend, for people."""
        return f"{self.file} ({self.backend})" if self.backend else self.file


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
    most images per second on record, or by a measurement now if `measure`; of those within `NOISE`
    of each other, the one that changes fewer answers. Several GPUs split each
    batch, and a CPU never stands in for them. The runner has as many of `num_streams` as its
    backend can, which is one on a GPU; None takes what suits the backend. Raises BundleError that
    gives the reason against each artefact.
    """
    failures: list[Rejection] = []  # of what was proven, and should have run
    candidates, rejected = rank(artifacts, precision, backend, num_gpus)

    def opened() -> Iterator[Choice]:
        for artifact, evidence in candidates:
            try:
                path, runs_on = folder / artifact.file, evidence.backend
                runner = open_runner(
                    path, artifact, runs_on, num_threads, num_gpus, num_streams, use_cache=True
                )
            except EngineError as error:
                failures.append(Rejection(artifact.file, evidence.backend, str(error)))
            else:
                rate = evidence.images_per_s
                how = "by order" if rate is None else f"recorded {rate:g} images/s"
                yield Choice(artifact, evidence, runner, how)

    best = _measured_best(opened(), failures) if measure else next(opened(), None)
    if best is None:
        raise BundleError(
            folder,
            "nothing in it can be served here: "
            + ", ".join(f"{each.what}: {each.reason}" for each in [*rejected, *failures]),
            "an artefact with a passed parity verdict",
            f"run `irv2 verify {folder}` on this machine",
        )
    # The fastest of each reason: a library that is missing is the reason against several.
    for reason, what in {each.reason: each.what for each in reversed(failures)}.items():
        logger.warning("passed over: %s: %s", what, reason)
    judged_with, here = best.evidence.backend_version, best.runner.backend_version
    if judged_with and judged_with != here:
        logger.info(
            "%s was judged on %s %s, here is %s: run `irv2 verify %s` to judge it with that",
            *(best.artifact.file, best.evidence.backend, judged_with, here, folder),
        )
    return best


def rank(
    artifacts: Sequence[Artifact],
    precision: str | None = None,
    backend: str | None = None,
    num_gpus: int = 1,
) -> tuple[list[Candidate], list[Rejection]]:
    """List what may be served here, the fastest first, and the reason against each of the rest.

    Nothing is opened, so one whose backend is missing or broken is listed too.
    """
    candidates: list[Candidate] = []
    rejected: list[Rejection] = []
    for artifact in artifacts:
        possible = backends(artifact) + _missing_backends(artifact)
        if not possible:
            rejected.append(Rejection(artifact.file, "", NO_BACKEND))
        for runs_on in possible:
            found = _candidate_or_rejection(artifact, runs_on, precision, backend, num_gpus)
            if isinstance(found, Candidate):
                candidates.append(found)
            else:
                rejected.append(found)
    return _fastest_first(candidates), rejected


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


def _candidate_or_rejection(
    artifact: Artifact, runs_on: str, precision: str | None, backend: str | None, num_gpus: int
) -> Candidate | Rejection:
    """Find the evidence by which the artefact may be served on `runs_on`, or why it may not."""
    rejection = partial(Rejection, artifact.file, runs_on)
    if precision and artifact.precision != precision:
        return rejection(f"is {artifact.precision}, asked for {precision}")
    if backend and not runs_on.endswith(backend):
        return rejection(f"is {runs_on}, asked for {backend}")
    if runs_on.endswith("-cpu") and num_gpus > 1:
        return rejection(f"is for a CPU, asked for {num_gpus} GPUs")
    if not artifact.known:
        return rejection("not verified", is_unjudged=True)
    rows = [row for row in artifact.known if row.backend == runs_on]
    if not rows:
        judged_on = ", ".join(sorted({row.backend for row in artifact.known}))
        return rejection(f"was judged on {judged_on}", is_unjudged=True)
    try:
        here = instruction_set(runs_on)
    except EngineError as error:
        return rejection(str(error))
    by_kind = {row.instruction_set: row for row in rows}
    evidence = by_kind.get(here) or by_kind.get("")  # of an older bundle, for any processor
    if evidence is None:
        reason = f"was judged with {', '.join(by_kind)}, this processor has {here}"
        return rejection(reason, is_unjudged=True)
    if evidence.parity.verdict != "passed":
        return rejection(f"parity {evidence.parity.verdict}")
    if artifact.precision == "bf16" and runs_on == "onnxruntime-cpu":
        return rejection("ONNX Runtime has no bf16 on a CPU")
    is_likely = artifact.precision in LIKELY[runs_on] and artifact.file != INT8_TRT
    if evidence.images_per_s is None and precision is None and not is_likely:
        return rejection(f"is no faster on {runs_on} than float32; taken only if asked for")
    return Candidate(artifact, evidence)


def _fastest_first(candidates: list[Candidate]) -> list[Candidate]:
    """By the speeds on record if all have one, else by what is likely."""
    rates = [each.evidence.images_per_s or 0 for each in candidates]
    if not all(rates):
        return sorted(candidates, key=_likely_rank)
    as_fast = (1 - NOISE) * max(rates, default=0)

    def preference(candidate: Candidate) -> tuple[float, float]:
        rate, agreement = candidate.evidence.images_per_s or 0, candidate.evidence.parity.agreement
        return (-agreement if rate >= as_fast else 0, -rate)

    return sorted(candidates, key=preference)


def _likely_rank(candidate: Candidate) -> tuple[int, bool, int]:
    artifact, evidence = candidate
    order = LIKELY[evidence.backend]
    rank = order.index(artifact.precision) if artifact.precision in order else len(order)
    return BACKENDS.index(evidence.backend), artifact.file == INT8_TRT, rank


def _measured_best(opened: Iterator[Choice], failures: list[Rejection]) -> Choice | None:
    """Time one after the other; two at most are open at a time. `failures` gets what fails.

    What comes later must be faster by more than `NOISE`.
    """
    best, best_rate = None, 0.0
    for choice in opened:
        try:
            [rate] = speed.images_per_s([choice.runner])
        except EngineError as error:
            failures.append(Rejection(choice.artifact.file, choice.evidence.backend, str(error)))
            rate = 0.0
        slower: Choice | None = choice
        if rate > best_rate * (1 + NOISE):
            best, slower, best_rate = choice, best, rate
        if slower is not None:
            slower.runner.close()
    return best and best._replace(how=f"measured {best_rate:g} images/s")
