"""The gate's verdict on every artefact and backend, and the engines' rates measured with it."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from irv2.manifest import REPORT, Artifact, ErrorChange, Evidence
from irv2.report.classes import with_interval
from irv2.report.html import lacking, section, table, tag
from irv2.report.sources import Published
from irv2.trust.inspection import batches_held
from irv2.trust.statements import exact_errors

_DECISIONS = (
    "artefact", "ran on", "verdict", "images", "top-1 error, %", "checkpoint, %", "lost, gained",
    "loss below / tolerance, points",
)  # fmt: skip
_REST = (
    "artefact", "ran on", "top-5 error, %", "lost, gained", "loss below / tolerance, points",
    "same best class, %", "changed below / limit, %", "batches",
)  # fmt: skip


def gate_section(published: Published) -> Element:
    """The verdicts of a bundle, and what the gate said of the images."""
    bundle = published.bundle
    rows = [(artifact, row) for artifact in bundle.artifacts for row in artifact.known]
    parts: list[Element] = [
        tag(
            "p",
            "The checkpoint in torch and each artefact answered the same labelled images. Lost are "
            "those on which the checkpoint is right and the artefact wrong, gained the reverse; "
            "what the loss is below holds with the gate's confidence.",
        )
    ]
    if rows:
        decisions = [_decision_cells(artifact, row) for artifact, row in rows]
        rest = [_other_cells(artifact, row) for artifact, row in rows]
        numbers = (3, 4, 5, 6, 7)
        parts.append(table("Verdicts and top-1", _DECISIONS, decisions, numbers=numbers))
        parts.append(table("Top-5, agreement, batches", _REST, rest, numbers=(2, 3, 4, 5, 6)))
    for artifact in bundle.artifacts:
        if not artifact.known:
            parts.append(lacking(f"{artifact.file}: not verified, nothing could run it yet."))
    parts += _worst_classes(rows)
    remarks = gate_remarks(bundle.path / REPORT)
    if remarks:
        parts.append(tag("h4", "What the gate says of it"))
        parts.append(tag("ul", *(tag("li", remark) for remark in remarks)))
    return section(3, "Parity gate", *parts)


def engines_section(published: Published) -> Element:
    """The rate of each engine, as it was measured beside its verdict."""
    rows = [
        (
            artifact.file,
            artifact.precision,
            row.ran_on,
            str(row.threads or "-"),
            f"{row.images_per_s:g}",
            row.parity.machine or "not recorded",
        )
        for artifact in published.bundle.artifacts
        for row in artifact.known
        if row.images_per_s is not None
    ]
    silent = [
        f"{artifact.file} on {row.ran_on}"
        for artifact in published.bundle.artifacts
        for row in artifact.known
        if row.images_per_s is None
    ]
    headers = ("artefact", "precision", "engine", "threads", "images/s", "machine")
    parts = (
        [table("Rate in batches of a server's size", headers, rows, numbers=(3, 4))] if rows else []
    )
    if silent:
        parts.append(
            lacking(f"Rate: not measured for {', '.join(silent)} (irv2 verify measures it).")
        )
    elif not rows:
        parts.append(lacking("Rate: not measured, no engine has run yet."))
    return section(3, "Engines", *parts)


def verdict_cell(verdict: str, at_chance: bool = False) -> Element:
    """A verdict, in words and colour."""
    words = verdict.replace("_", " ") + (", checkpoint at chance" if at_chance else "")
    good = verdict == "passed" and not at_chance
    return tag("span", words, class_="good" if good else "bad")


def gate_remarks(report: Path) -> list[str]:
    """Return the points that parity.md lists; none where there is no such file."""
    lines = report.read_text("utf-8", "replace").splitlines() if report.is_file() else []
    return [line.removeprefix("- ") for line in lines if line.startswith("- ")]


def _decision_cells(artifact: Artifact, row: Evidence) -> tuple[str | Element, ...]:
    parity = row.parity
    return (
        artifact.file,
        row.ran_on,
        verdict_cell(parity.verdict, parity.at_chance),
        str(parity.n),
        with_interval(exact_errors(parity).get("top-1"), 2),
        f"{parity.top1.reference_error:.2f}",
        f"{parity.top1.lost}, {parity.top1.gained}",
        _loss(parity.top1),
    )


def _other_cells(artifact: Artifact, row: Evidence) -> tuple[str, ...]:
    parity, found = row.parity, row.parity.disagreement
    return (
        artifact.file,
        row.ran_on,
        with_interval(exact_errors(parity).get("top-5"), 2),
        f"{parity.top5.lost}, {parity.top5.gained}",
        _loss(parity.top5),
        f"{parity.agreement:.2f}",
        f"{found.upper_points:.2f} / {found.limit_points:g}" if found else "not judged",
        batches_held(artifact, row.invariance),
    )


def _loss(change: ErrorChange) -> str:
    return f"{change.upper_loss_points:.2f} / {change.tolerance_points:g}"


def _worst_classes(rows: list[tuple[Artifact, Evidence]]) -> Iterator[Element]:
    changes = [
        (
            change.label,
            artifact.file,
            row.ran_on,
            str(change.images),
            f"{change.lost}, {change.gained}",
            f"{change.lower_loss_points:.2f} to {change.upper_loss_points:.2f}",
        )
        for artifact, row in rows
        for change in row.parity.worst_classes
    ]
    if changes:
        caption = "Classes that lost most; the limits hold for all classes at once"
        headers = ("class", "artefact", "ran on", "images", "lost, gained", "loss, points")
        yield table(caption, headers, changes, numbers=(3, 4, 5))
