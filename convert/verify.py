"""The gate again, on this machine: bundle and images suffice, no checkpoint and no torch."""

from functools import partial
from pathlib import Path

import msgspec

from irv2.bundle import Bundle
from irv2.convert.gate.judge import judge_all, open_artifacts
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.report import Report, Show, report_on, unseen
from irv2.convert.gate.tolerance import Tolerance, tolerance_for
from irv2.convert.onnx.blocks import block_outputs
from irv2.convert.publish.evidence import ledger_files, write_evidence
from irv2.convert.publish.replace import with_own_name
from irv2.data.dataset import BadImages, open_split
from irv2.data.samples import is_sample, resolve_data
from irv2.errors import BundleError, DataError, EngineError
from irv2.evaluate import classify_folder
from irv2.manifest import (
    MANIFEST,
    ONNX_FILE,
    REFERENCE,
    Manifest,
    Precision,
    is_judged,
    read_manifest,
)


def verify(
    path: Path,
    data: Path | None,
    bad_images: BadImages = "error",
    place: Path | None = None,
    show: Show = unseen,
) -> Report:
    """Judge every artefact that this machine can run and write the result into the bundle.

    The images are those of the export, found by their content. An artefact that can't be run
    here keeps its evidence. The report names `place`, where the bundle will lie, if it is not
    `path`; `show` gets it before anything is written. Raises EngineError if none can be run,
    BundleError if the bundle was replaced meanwhile, another Irv2Error if the result can't be
    written.
    """
    bundle, place = open_to_verify(path), with_own_name(place or path)
    reference = Reference.load(path / REFERENCE)
    data = resolve_data(data)
    split = open_split(data, "val", bundle.classes, bad_images)
    images, reference, num_copies = reference.find_images(split)
    tolerances = _tolerances(bundle.manifest, data)
    with open_artifacts(bundle) as opened:
        if not opened.runners:
            raise EngineError(place, f"nothing in it runs here ({_joined(opened.reasons)})")
        for artifact in bundle.artifacts:
            for run, runner in opened.runners.items():
                if run.file == artifact.file:
                    bundle.require_fit(artifact, runner)
        predictions = classify_folder(
            list(opened.runners.values()), images, bundle.preprocess, title="verify"
        )
        if any(each.sha256 != reference.sha256 for each in predictions):
            got = "images changed while they were read"
            raise DataError(images.place, got, way_out="run it again while nothing writes there")
        judged = judge_all(
            bundle,
            opened,
            predictions,
            reference,
            images,
            tolerances=tolerances,
            num_copies=num_copies,
            # Without torch the float32 ONNX model stands for the checkpoint.
            reference_blocks=partial(block_outputs, path / ONNX_FILE),
        )
    report = report_on(place, bundle.manifest, judged, opened.reasons, reference, images)
    show(report)
    require_same(path, bundle.manifest)
    return write_evidence(path, report, ledger_files(report.manifest, judged))


def open_to_verify(path: Path) -> Bundle:
    """Open a bundle whatever its report and ledgers hold, since they are written anew.

    Raises BundleError if any other hash is wrong.
    """
    bundle = Bundle(path, read_manifest(path / MANIFEST))
    for file, problem in bundle.check():
        if problem and not (is_judged(file) and file.parent == path):
            raise BundleError(file, problem, way_out=bundle.way_out(file))
    return bundle


def require_same(path: Path, opened: Manifest) -> None:
    """Raise BundleError unless `path` is still the bundle that was opened, evidence included.

    An export may have published there meanwhile; its bundle must not be overwritten.
    """
    if read_manifest(path / MANIFEST).sha256 != opened.sha256:
        raise BundleError(path, "was replaced while it was judged", way_out="verify again")


def _tolerances(manifest: Manifest, data: Path) -> dict[Precision, Tolerance]:
    """By precision what the export was asked to accept, or the default if a bundle does not say."""
    accepted = {p: msgspec.structs.asdict(loss) for p, loss in manifest.accepted_loss.items()}
    return {
        artifact.precision: tolerance_for(
            artifact.precision, is_sample=is_sample(data), **accepted.get(artifact.precision, {})
        )
        for artifact in manifest.artifacts
    }


def _joined(reasons: dict[str, str]) -> str:
    return "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
