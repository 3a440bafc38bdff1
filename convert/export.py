"""From a checkpoint to a published bundle, or to a rejected report.

The bundle is built beside its place. The gate judges every artefact that this machine can run, in
one pass over the evaluation images; only when all of them passed the folder is renamed into place.
"""

import logging
from functools import partial
from pathlib import Path

import msgspec

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.convert.candidate import DEFAULTS, Candidate, ExportOptions, make_candidate
from irv2.convert.gate.judge import judge_all, open_artifacts, undecided
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.reference_cache import classify_with_reference
from irv2.convert.gate.report import Report, Show, report_on, unseen
from irv2.convert.gate.verdict import best_by_file
from irv2.convert.onnx.torch_blocks import torch_block_outputs
from irv2.convert.publish.evidence import (
    choose_self_test,
    forget_rejection,
    ledger_files,
    write_evidence,
    write_rejection,
)
from irv2.convert.publish.replace import folder_beside, replace_folder, require_replaceable
from irv2.data.dataset import ImageFolder, open_split
from irv2.data.samples import resolve_data
from irv2.errors import EngineError, UsageError
from irv2.ledger import first_rows
from irv2.manifest import ONNX_FILE, REFERENCE
from irv2.self_test import SELF_TEST

logger = logging.getLogger(__name__)


def export(
    checkpoint_path: Path,
    data: Path | None,
    out: Path | None,
    options: ExportOptions = DEFAULTS,
    show: Show = unseen,
) -> Report:
    """Convert a checkpoint, judge the result and publish it as the bundle `out`.

    `out` None means CKPT.bundle beside the checkpoint. The report says whether the bundle passed;
    `show` gets it before anything is published or left. Raises an Irv2Error if there is no
    verdict, or if it can't be written.
    """
    data = resolve_data(data)
    checkpoint, sha256 = Checkpoint.load_with_sha256(checkpoint_path)
    checkpoint.require_classifier(checkpoint_path)
    out = out or checkpoint_path.with_suffix(".bundle")
    if out.name in ("", ".."):
        raise UsageError("--out", str(out), "a folder with a name of its own")
    require_replaceable(out)
    val = open_split(data, "val", checkpoint.classes, options.bad_images)
    with folder_beside(out) as folder:
        candidate = make_candidate(checkpoint, sha256, folder, options, val)
        return judge_and_publish(candidate, val.first(options.limit), out, options, show)


def judge_and_publish(
    candidate: Candidate,
    images: ImageFolder,
    out: Path,
    options: ExportOptions,
    show: Show = unseen,
) -> Report:
    """Judge the candidate on `images`, and move it to `out` if it decides like its checkpoint.

    Otherwise nothing is published; the report and the answers it is about lie in `out`.rejected.
    """
    report, evidence = _judge(candidate, images, out, options)
    show(report)
    if report.failed:
        write_rejection(report, evidence)
        return report
    published = {artifact.file for artifact in report.manifest.artifacts}
    for artifact in candidate.artifacts:
        if artifact.file not in published:
            (candidate.folder / artifact.file).unlink()
    report = write_evidence(candidate.folder, report, evidence)
    replace_folder(candidate.folder, out)
    forget_rejection(out)
    return report


def _judge(
    candidate: Candidate, images: ImageFolder, out: Path, options: ExportOptions
) -> tuple[Report, dict[str, bytes]]:
    """Return the report and the files beside it: name -> content."""
    checkpoint, bundle = candidate.checkpoint, Bundle(candidate.folder, candidate.manifest)
    tolerances = {a.precision: options.tolerance(a.precision, images) for a in bundle.artifacts}
    with open_artifacts(bundle) as opened:
        if reason := opened.reasons.get(ONNX_FILE):
            # Engines may have to wait for their GPU; a bundle without this model is of no use.
            got, way_out = f"can't be judged ({reason})", 'pip install "irv2[cpu]"'
            raise EngineError(ONNX_FILE, got, "ONNX Runtime", way_out)
        predictions = classify_with_reference(
            checkpoint,
            candidate.checkpoint_sha256,
            list(opened.runners.values()),
            images,
            options.bad_images,
        )
        distinct = first_rows(predictions[0].keys)
        num_copies = len(predictions[0]) - len(distinct)
        if num_copies:
            predictions = [each.take(distinct) for each in predictions]
        images = images.select(predictions[0].files)
        reference = Reference.from_predictions(predictions[0])
        judged = judge_all(
            bundle,
            opened,
            predictions[1:],
            reference,
            images,
            tolerances=tolerances,
            num_copies=num_copies,
            reference_blocks=partial(torch_block_outputs, checkpoint),
        )
    best = best_by_file(judged)
    left_out = undecided(candidate.artifacts, best) if options.precisions is None else {}
    for file, reason in sorted(left_out.items()):
        logger.warning("%s is left out: %s", file, reason)
    artifacts = [a for a in candidate.artifacts if a.file not in left_out]
    judged = {run: found for run, found in judged.items() if run.file not in left_out}
    manifest = msgspec.structs.replace(
        bundle.manifest.with_artifacts(artifacts),
        accepted_loss={a.precision: tolerances[a.precision].accepted_loss for a in artifacts},
    )
    report = report_on(out, manifest, judged, opened.reasons, reference, images)
    evidence = {REFERENCE: reference.to_bytes(), **ledger_files(report.manifest, judged)}
    served = [
        predicted
        for run, predicted in zip(opened.runners, predictions[1:], strict=True)
        if run in judged and judged[run].parity.verdict == "passed"
    ]
    self_test = choose_self_test([predictions[0], *served], images, checkpoint.preprocess)
    if self_test and not report.failed:
        evidence[SELF_TEST] = self_test.to_bytes()
    return report, evidence
