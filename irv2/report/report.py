"""Put the report together: a summary, a chapter per run and bundle, what was measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from irv2 import __version__
from irv2.report.classes import classes_section, with_interval
from irv2.report.gate import engines_section, gate_section, verdict_cell
from irv2.report.html import LACKING, chapter, document, lacking, section, table, tag
from irv2.report.measured import measured_chapter
from irv2.report.pictures import Pictures, flips_section, worst_section
from irv2.report.provenance import provenance_section
from irv2.report.sources import Published, Run, Sources
from irv2.report.training import best_row, training_chapter
from irv2.trust.statements import exact_errors

_BUNDLE_HEADERS = (
    "bundle", "artefact", "verdict", "top-1 error, %", "checkpoint, %", "images/s",
)  # fmt: skip
_RUN_HEADERS = ("run", "setting", "epochs", "lowest top-1 error, %", "its top-5 error, %")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A page, and what it says is not in it."""

    content: bytes
    lacking: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What a report shows beside runs and bundles."""

    data: Path | None = None  # whose val/ holds the images of the pictures
    num_pictures: int = 12  # in each gallery
    benchmarks: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the names of files


def make_report(sources: Sources, options: ReportOptions) -> Report:
    """Make the page. The same sources and options give the same bytes."""
    pictures = Pictures(options.data, options.num_pictures)
    chapters = {}
    for i, run in enumerate(sources.runs, 1):
        id_, is_published = f"run-{i}", any(map(run.files_with, sources.checkpoints))
        chapters[id_] = (run.name, training_chapter(run, is_published, id_))
    for i, published in enumerate(sources.bundles, 1):
        id_ = f"bundle-{i}"
        chapters[id_] = (published.name, _bundle_chapter(published, sources.runs, pictures, id_))
    chapters["measured"] = ("measured", measured_chapter(options.benchmarks, "measured"))
    missing = _missing(chapters)
    names = [run.name for run in sources.runs] + [each.name for each in sources.bundles]
    title = " · ".join(names)
    links = [
        tag("li", tag("a", name, href=f"#{id_}"))
        for id_, (name, _) in [*chapters.items(), ("lacking", ("not in this report", None))]
    ]
    content = document(
        f"Report: {title}",
        tag("header", tag("h1", title), tag("p", f"Report of irv2 {__version__}", class_="quiet")),
        tag("nav", tag("ul", *links), aria_label="Chapters"),
        _summary(sources),
        *(part for _, part in chapters.values()),
        section(2, "Not in this report", *_missing_list(missing), id_="lacking"),
    )
    return Report(content=content, lacking=missing)


def _bundle_chapter(
    published: Published, runs: Sequence[Run], pictures: Pictures, id_: str
) -> Element:
    reference = published.reference
    sha256 = published.bundle.manifest.source.checkpoint_sha256
    is_trained_here = any(run.files_with(sha256) for run in runs)
    curves = [] if is_trained_here else [lacking("Training curves: no run here holds its weights.")]
    if reference is None:
        about_answers = [lacking("Classes, pictures and flips: not recorded, no reference.npz.")]
    else:
        about_answers = [
            classes_section(reference, published.bundle.classes),
            worst_section(published, reference, pictures),
            flips_section(published, reference, pictures),
        ]
    return chapter(
        f"Bundle {published.name}",
        *curves,
        gate_section(published),
        engines_section(published),
        *about_answers,
        provenance_section(published, runs),
        id_=id_,
    )


def _summary(sources: Sources) -> Element:
    parts = []
    if sources.bundles:
        rows = (row for published in sources.bundles for row in _bundle_rows(published))
        parts.append(table("Bundles", _BUNDLE_HEADERS, rows, numbers=(3, 4, 5)))
    if sources.runs:
        parts.append(table("Runs", _RUN_HEADERS, map(_run_row, sources.runs), numbers=(2, 3, 4)))
    return section(2, "Summary", *parts)


def _bundle_rows(published: Published) -> Iterator[tuple[Element | str, ...]]:
    """A row per artefact, on the backend where it did best."""
    for artifact in published.bundle.artifacts:
        if not artifact.known:
            yield published.name, artifact.file, "not verified", "", "", "not measured"
            continue
        row = artifact.known[0]
        parity, rate = row.parity, row.images_per_s
        yield (
            published.name,
            artifact.file,
            verdict_cell(parity.verdict, parity.at_chance),
            with_interval(exact_errors(parity).get("top-1"), 2),
            f"{parity.top1.reference_error:.2f}",
            "not measured" if rate is None else f"{rate:g}",
        )


def _run_row(run: Run) -> tuple[str, ...]:
    setting = str(run.config.get("recipe", {}).get("setting", "not recorded"))
    if not run.curve.rows:
        return run.name, setting, "0", "not measured", "not measured"
    row = best_row(run.curve)
    errors = (f"{row['val_top1_error']:.2f}", f"{row['val_top5_error']:.2f}")
    return run.name, setting, str(len(run.curve.rows)), *errors


def _missing(chapters: dict[str, tuple[str, Element]]) -> list[str]:
    """What the chapters say is not there, each with its chapter."""
    found = [
        f"{name}: {''.join(paragraph.itertext())}"
        for name, part in chapters.values()
        for paragraph in part.iter("p")
        if paragraph.get("class") == LACKING
    ]
    return list(dict.fromkeys(found))


def _missing_list(missing: list[str]) -> list[Element]:
    if not missing:
        return [tag("p", "Nothing that such a report can hold is missing.")]
    return [tag("ul", *(tag("li", each) for each in missing))]
