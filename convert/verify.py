"""The gate again, on this machine: bundle and images suffice, no checkpoint and no torch."""

import logging
from functools import partial
from pathlib import Path

import msgspec

from irv2.bundle import Bundle
from irv2.convert.gate.judge import judge_all, open_artifacts
from irv2.convert.gate.reference import REFERENCE, Reference
from irv2.convert.gate.remarks import evidence_remarks
from irv2.convert.gate.report import Report, chance_remark, remarks_on, report_on
from irv2.convert.gate.verdict import Tolerance, tolerance_for
from irv2.convert.onnx.blocks import block_outputs
from irv2.convert.publish.evidence import ledger_files, write_evidence
from irv2.convert.publish.replace import named
from irv2.data.dataset import BadImages, open_split
from irv2.data.samples import is_sample, resolve_data
from irv2.errors import BundleError, DataError, EngineError
from irv2.evaluate import classify_folder
from irv2.manifest import MANIFEST, ONNX_FILE, Artifact, Manifest, is_judged, read_manifest

logger = logging.getLogger(__name__)


def verify(
    path: Path, data: Path | None, bad_images: BadImages = "error", place: Path | None = None
) -> Report:
    """Judge every artefact that this machine can run and write down what came out.

    The images are those of the export, found by their content. An artefact that can't be run
    here keeps its evidence. The report names `place`, where the bundle will lie, if it is not
    `path`. Raises EngineError where none can be run, BundleError where the bundle was replaced
    meanwhile.
    """
    bundle, place = open_to_verify(path), named(place or path)
    reference = Reference.load(path / REFERENCE)
    data = resolve_data(data)
    split = open_split(data, "val", bundle.classes, bad_images)
    images, reference = reference.find_images(split)
    tolerance_of = partial(_tolerance, manifest=bundle.manifest, sample=is_sample(data))
    with open_artifacts(bundle) as opened:
        if not opened.runners:
            raise EngineError(place, f"nothing in it runs here ({_joined(opened.reasons)})")
        predictions = classify_folder(
            list(opened.runners.values()), images, bundle.preprocess, title="verify"
        )
        if any(each.sha256 != reference.sha256 for each in predictions):
            raise DataError(images.root, "images changed while they were read")
        judged = judge_all(
            bundle,
            opened,
            predictions,
            reference,
            images,
            tolerance_of=tolerance_of,
            # Without torch the float32 ONNX model stands for the checkpoint.
            reference_blocks=partial(block_outputs, path / ONNX_FILE),
        )
    if weakness := chance_remark(reference, len(bundle.classes)):
        logger.warning("notice: %s", weakness)
    confidence = tolerance_of(bundle.manifest.artifacts[0]).confidence
    remarks = remarks_on(reference, len(bundle.classes), confidence)
    remarks += evidence_remarks(reference, bundle.classes, data)
    report = report_on(place, bundle.manifest, judged, opened.reasons, remarks)
    require_same(path, bundle.manifest)
    return write_evidence(path, report, ledger_files(judged))


def open_to_verify(path: Path) -> Bundle:
    """Open a bundle without asking for report and ledgers, which are written anew.

    Raises BundleError where another hash is wrong.
    """
    bundle = Bundle(path, read_manifest(path / MANIFEST))
    for file, problem in bundle.check():
        if problem and not is_judged(file):
            raise BundleError(file, problem, way_out=bundle.way_out(file))
    return bundle


def require_same(path: Path, opened: Manifest) -> None:
    """Raise BundleError where `path` is no longer the bundle that was opened, evidence included.

    An export may have published there meanwhile, whose bundle is not to be overwritten.
    """
    if read_manifest(path / MANIFEST).sha256 != opened.sha256:
        raise BundleError(path, "was replaced while it was judged", way_out="verify again")


def _tolerance(artifact: Artifact, manifest: Manifest, sample: bool) -> Tolerance:
    """What the export was asked to accept; the table's row where a bundle does not say."""
    accepted = manifest.accepted_loss.get(artifact.precision)
    given = {} if accepted is None else msgspec.structs.asdict(accepted)
    return tolerance_for(artifact.precision, is_sample=sample, **given)


def _joined(reasons: dict[str, str]) -> str:
    return "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
