"""One pass over the evaluation images, and everything the gate finds out about each artefact."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from irv2.bundle import Bundle
from irv2.convert.engine.options import EngineOptions
from irv2.convert.gate import invariance
from irv2.convert.gate.artifacts import Opened
from irv2.convert.gate.localize import BlockOutputs, explain
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.report import Report, written_down
from irv2.convert.gate.verdict import Judgement, Tolerance, judge
from irv2.data.dataset import ImageFolder
from irv2.ledger import Ledger, Predictions
from irv2.manifest import (
    LEDGER_SUFFIX,
    MANIFEST,
    REPORT,
    AcceptedLoss,
    Artifact,
    Precision,
    manifest_json,
)
from irv2.system.files import write_atomically
from irv2.system.machine import describe_machine
from irv2.types import UInt8Array


def judge_all(
    bundle: Bundle,
    opened: Opened,
    predictions: list[Predictions],
    reference: Reference,
    images: ImageFolder,
    *,
    tolerance_of: Callable[[Artifact], Tolerance],
    reference_blocks: Callable[[UInt8Array], BlockOutputs],
) -> dict[str, Judgement]:
    """Decisions, batch invariance and ledger of every opened artefact, by file name.

    `predictions` are those of `opened.runners`, in that order. `reference_blocks` is asked only
    where something fails.
    """
    artifacts = {artifact.file: artifact for artifact in bundle.manifest.artifacts}
    probes = invariance.load_probes(images, predictions[0], bundle.preprocess)
    judged = {}
    for (file, runner), predicted in zip(opened.runners.items(), predictions, strict=True):
        artifact = artifacts[file]
        tolerance = tolerance_of(artifact)
        judgement = judge(
            reference, predicted.logits, artifact.precision, tolerance, runner.backend
        )
        parity = msgspec.structs.replace(judgement.parity, machine=describe_machine())
        judgement = dataclasses.replace(judgement, parity=parity)
        profiles = EngineOptions.from_record(artifact.built_with).profiles
        found = invariance.check(runner, probes, artifact.max_batch, profiles)
        judgement = invariance.with_invariance(judgement, artifact, found)
        judgement = dataclasses.replace(judgement, ledger=Ledger.from_predictions(predicted))
        if judgement.parity.verdict == "failed":
            explanation = explain(bundle, artifact, probes, reference_blocks)
            judgement = dataclasses.replace(judgement, explanation=explanation)
        judged[file] = judgement
    return judged


def accepted_loss(
    artifacts: list[Artifact], tolerance_of: Callable[[Artifact], Tolerance]
) -> dict[Precision, AcceptedLoss]:
    """What the bundle records of the tolerances, for a gate on another machine."""
    tolerances = {artifact.precision: tolerance_of(artifact) for artifact in artifacts}
    return {
        precision: AcceptedLoss(
            top1_points=tolerance.top1_points,
            top5_points=tolerance.top5_points,
            confidence=tolerance.confidence,
        )
        for precision, tolerance in tolerances.items()
    }


def ledger_files(judged: dict[str, Judgement]) -> dict[str, bytes]:
    """The ledger of every artefact that was run: file name -> content."""
    return {
        file + LEDGER_SUFFIX: judgement.ledger.to_bytes()
        for file, judgement in judged.items()
        if judgement.ledger is not None
    }


def write_evidence(folder: Path, report: Report, contents: dict[str, bytes]) -> Report:
    """Write `contents`, parity.md and, last, bundle.json with their hashes.

    Raises UnwrittenError.
    """
    contents = {**contents, REPORT: report.to_markdown().encode()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = msgspec.structs.replace(report.manifest, files=report.manifest.files | hashes)
    with written_down(report):
        for name, content in {**contents, MANIFEST: manifest_json(manifest)}.items():
            write_atomically(folder / name, content)
    return dataclasses.replace(report, manifest=manifest)
