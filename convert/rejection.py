"""What is left of a bundle that did not pass: its report, beside the place it was made for."""

from pathlib import Path

from convert.report import REPORT, Report
from irv2.bundle import write_atomically


def rejected_folder(place: Path) -> Path:
    """Where the report of a bundle that was not put at `place` lies."""
    return place.with_name(f"{place.name}.rejected")


def write_rejection(report: Report) -> None:
    """Leave the report beside the bundle's place."""
    folder = rejected_folder(report.bundle)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / REPORT, report.to_markdown().encode())


def forget_rejection(place: Path) -> None:
    """Remove the report of an earlier try, and its folder if nothing else lies in it."""
    folder = rejected_folder(place)
    (folder / REPORT).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
