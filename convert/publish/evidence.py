"""The files that a verdict leaves: in the bundle, or beside its place if it was rejected."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from irv2.convert.gate.report import Report
from irv2.convert.gate.verdict import Judgement, Run
from irv2.data.dataset import ImageFolder
from irv2.errors import Irv2Error, ParityError
from irv2.images.preprocess import Preprocess, prepare
from irv2.ledger import Ledger, Predictions
from irv2.manifest import LEDGER_SUFFIX, MANIFEST, REFERENCE, REPORT, Manifest, manifest_json
from irv2.self_test import NUM_IMAGES, SELF_TEST, SelfTest
from irv2.system.files import write_atomically


def ledger_files(manifest: Manifest, judged: dict[Run, Judgement]) -> dict[str, bytes]:
    """The ledger of every artefact on each backend that ran it: file name -> content."""
    artifacts = {artifact.file: artifact for artifact in manifest.artifacts}
    return {
        artifacts[run.file].ledger(judgement.evidence): judgement.ledger.to_bytes()
        for run, judgement in judged.items()
        if judgement.ledger is not None
    }


def write_evidence(folder: Path, report: Report, contents: dict[str, bytes]) -> Report:
    """Write `contents`, parity.md and, last, bundle.json with their hashes.

    If that fails it raises what `_verdict_named` raises.
    """
    contents = {**contents, REPORT: report.to_markdown().encode()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    ledgers = {a.ledger(row) for a in report.manifest.artifacts for row in a.known}
    files = report.manifest.files | hashes
    gone = {name for name in files if name.endswith(LEDGER_SUFFIX)} - ledgers
    files = {name: sha256 for name, sha256 in files.items() if name not in gone}
    manifest = msgspec.structs.replace(report.manifest, files=files)
    with _verdict_named(report):
        for name, content in {**contents, MANIFEST: manifest_json(manifest)}.items():
            write_atomically(folder / name, content)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
    return dataclasses.replace(report, manifest=manifest)


def rejected_folder(place: Path) -> Path:
    """Where the report and the answers of a bundle that was not put at `place` lie."""
    return place.with_name(f"{place.name}.rejected")


def write_rejection(report: Report, evidence: dict[str, bytes]) -> None:
    """Write the report and the answers behind it to a folder beside the bundle's place.

    If that fails it raises what `_verdict_named` raises.
    """
    folder = rejected_folder(report.bundle)
    with _verdict_named(report):
        forget_rejection(report.bundle)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {**evidence, REPORT: report.to_markdown().encode()}.items():
            write_atomically(folder / name, content)


def forget_rejection(place: Path) -> None:
    """Remove what an earlier rejection left, and its folder if nothing else lies in it."""
    folder = rejected_folder(place)
    names = (REPORT, REFERENCE, SELF_TEST)
    for path in (*(folder / name for name in names), *folder.glob(f"*{LEDGER_SUFFIX}")):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _verdict_named(report: Report) -> Iterator[None]:
    """Name the verdict if writing fails, and exit as the verdict alone would.

    Raises ParityError for a report that has not passed, else Irv2Error.
    """
    try:
        yield
    except OSError as error:
        raise (ParityError if report.failed else Irv2Error)(
            error.filename or report.bundle,
            f"can't be written ({error.strerror})",
            way_out=f"not passed: {report.failure}" if report.failed else "passed",
        ) from error


def choose_self_test(
    predictions: Sequence[Predictions], images: ImageFolder, config: Preprocess
) -> SelfTest | None:
    """Choose the clearest images on which all predictions agree; None if they agree on none.

    The checkpoint's predictions come first. Clear means a large margin, so that rounding on
    another machine changes no answer; the images are of as many classes as possible, so that an
    engine that always gives the same answer is found.
    """
    reference = Ledger.from_predictions(predictions[0])
    top1, margins = reference.top5[:, 0], reference.margins
    agreed = np.flatnonzero(np.all([each.top5[:, 0] == top1 for each in predictions], axis=0))
    clearest = agreed[np.argsort(-margins[agreed], kind="stable")]
    _, first_of_class = np.unique(top1[clearest], return_index=True)
    is_repeated = np.ones(len(clearest), bool)
    is_repeated[first_of_class] = False
    chosen = clearest[np.argsort(is_repeated, kind="stable")][:NUM_IMAGES]
    if not len(chosen):
        return None
    shown = images.select([predictions[0].files[row] for row in chosen])
    pixels = [prepare(shown.read(i), config).image_hwc for i in range(len(shown))]
    return SelfTest(np.stack(pixels), top1[chosen], margins[chosen])
