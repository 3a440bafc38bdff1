"""Run a bundle's artefacts, and find out everything that the gate asks about each."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import msgspec

from irv2.bundle import Bundle
from irv2.convert.engine.options import EngineOptions
from irv2.convert.gate import invariance
from irv2.convert.gate.localize import explain
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.tolerance import Tolerance
from irv2.convert.gate.verdict import Judgement, Run, judge
from irv2.convert.onnx.blocks import BlockOutputs
from irv2.data.dataset import ImageFolder
from irv2.errors import EngineError
from irv2.ledger import Ledger, Predictions
from irv2.manifest import Artifact, Precision
from irv2.runners.base import Runner
from irv2.runners.choose import NO_BACKEND, backends, open_runner
from irv2.runners.speed import images_per_s
from irv2.system.machine import describe_machine, instruction_set
from irv2.types import UInt8Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenArtifacts:
    """The runners of the artefacts; by file name, the reason why one has none on this machine."""

    runners: dict[Run, Runner]
    reasons: dict[str, str]


@contextmanager
def open_artifacts(bundle: Bundle) -> Iterator[OpenArtifacts]:
    """Open every artefact on the GPU if that takes it, else on every backend of the CPU.

    Raises BundleError if a model file does not have its hash, or lost it meanwhile: what is judged
    is what the verdict will be about.
    """
    bundle.require_models_unchanged()
    opened = OpenArtifacts({}, {})
    with ExitStack() as stack:
        for artifact in bundle.manifest.artifacts:
            reasons = []
            for backend in backends(artifact):
                run = Run(artifact.file, backend)
                try:
                    path = bundle.path / artifact.file
                    opened.runners[run] = stack.enter_context(open_runner(path, artifact, backend))
                except EngineError as error:
                    # Published, unlike the folder, in which the bundle lies only until then.
                    reason = f"{error.what}: {error.got}".replace(f"{bundle.path}/", "")
                    reasons.append(reason)
                    logger.warning("%s is not run on %s: %s", *run, reason)
                else:
                    if not backend.endswith("-cpu"):
                        break
            if not any(run.file == artifact.file for run in opened.runners):
                opened.reasons[artifact.file] = ", ".join(reasons) or NO_BACKEND
        yield opened
    bundle.require_models_unchanged()


def judge_all(
    bundle: Bundle,
    opened: OpenArtifacts,
    predictions: list[Predictions],
    reference: Reference,
    images: ImageFolder,
    *,
    tolerances: Mapping[Precision, Tolerance],
    num_copies: int,
    reference_blocks: Callable[[UInt8Array], BlockOutputs],
) -> dict[Run, Judgement]:
    """Judge every opened artefact: decisions, batch invariance, speed and ledger.

    `predictions` are those of `opened.runners`, in that order; `num_copies` images were left out
    as copies of others. `reference_blocks` is called only for artefacts that fail by more
    than their checkpoint's fault.
    """
    artifacts = {artifact.file: artifact for artifact in bundle.artifacts}
    probes = invariance.load_probes(images, predictions[0], bundle.preprocess)
    judged = {}
    rates = images_per_s(list(opened.runners.values()))
    for (run, runner), predicted, rate in zip(
        opened.runners.items(), predictions, rates, strict=True
    ):
        artifact = artifacts[run.file]
        precision = artifact.precision
        tolerance = tolerances[precision]
        judgement = judge(
            reference, predicted.logits, precision, tolerance, runner.backend, bundle.classes
        )
        ledger = Ledger.from_predictions(predicted)
        parity = msgspec.structs.replace(
            judgement.parity, machine=describe_machine(), copies=num_copies
        )
        judgement = dataclasses.replace(
            judgement,
            parity=parity,
            backend_version=runner.backend_version,
            instruction_set=instruction_set(runner.backend),
            threads=runner.num_threads,
            images_per_s=rate,
            ledger=ledger,
        )
        profiles = EngineOptions.from_record(artifact.built_with).profiles
        unit = ledger.typical_margin
        found = invariance.check(runner, probes, artifact.max_batch, profiles, unit)
        judgement = invariance.with_invariance(judgement, artifact, found)
        by_chance = judgement.parity.at_chance and not tolerance.accept_chance
        if judgement.parity.verdict == "failed" and not by_chance:
            explanation = explain(bundle, artifact, probes, reference_blocks)
            judgement = dataclasses.replace(judgement, explanation=explanation)
        judged[run] = judgement
    return judged


def undecided(artifacts: list[Artifact], judged: dict[str, Judgement]) -> dict[str, str]:
    """Files that too few images could judge, float32 apart, and their engines -> the reason."""
    models = {
        artifact.sha256: artifact.file
        for artifact in artifacts
        if artifact.precision != "fp32"
        and artifact.file in judged
        and judged[artifact.file].parity.verdict == "too_few_images"
    }
    engines = {
        artifact.file: f"it is made of {models[artifact.built_from]}"
        for artifact in artifacts
        if artifact.built_from in models
    }
    return engines | {file: judged[file].line for file in models.values()}
