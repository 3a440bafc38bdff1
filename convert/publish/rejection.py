"""What is left of a bundle that did not pass: report and answers, beside the place it was for."""

from pathlib import Path

from irv2.convert.gate.reference import REFERENCE
from irv2.convert.gate.report import Report, written_down
from irv2.manifest import LEDGER_SUFFIX, REPORT
from irv2.self_test import SELF_TEST
from irv2.system.files import write_atomically


def rejected_folder(place: Path) -> Path:
    """Where the report and the answers of a bundle that was not put at `place` lie."""
    return place.with_name(f"{place.name}.rejected")


def write_rejection(report: Report, evidence: dict[str, bytes]) -> None:
    """Leave the report and the files that it is about beside the bundle's place.

    Raises UnwrittenError.
    """
    folder = rejected_folder(report.bundle)
    with written_down(report):
        forget_rejection(report.bundle)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {**evidence, REPORT: report.to_markdown().encode()}.items():
            write_atomically(folder / name, content)


def forget_rejection(place: Path) -> None:
    """Remove what an earlier try left, and its folder if nothing else lies in it."""
    folder = rejected_folder(place)
    names = (REPORT, REFERENCE, SELF_TEST)
    for path in (*(folder / name for name in names), *folder.glob(f"*{LEDGER_SUFFIX}")):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
