"""The gate's report: a table on screen, parity.md in the bundle, and the same as JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from irv2.convert.gate.classes import ClassChanges
from irv2.convert.gate.invariance import describe
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.remarks import gain_remark, remarks_on
from irv2.convert.gate.verdict import Judgement, Run, best_by_file
from irv2.data.dataset import ImageFolder
from irv2.manifest import Artifact, ErrorChange, Manifest
from irv2.system.text import markdown_cell, one_line

_HEADERS = (
    "artefact",
    "verdict",
    "top-1 error",
    "lost, gained",
    "top-5 error",
    "lost, gained",
    "agreement",
    "ran on",
    "images/s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the gate found, and whether the bundle stands."""

    bundle: Path
    manifest: Manifest
    lines: dict[str, str]  # artefact file -> what the gate says of it
    remarks: list[str]  # what the images can show, and why artefacts failed
    failed: list[str]  # artefact files that did not pass
    classes: dict[str, ClassChanges]  # by the file of an artefact that was judged

    @property
    def failure(self) -> str:
        """The lines of what did not pass, or an empty string."""
        return ", ".join(f"{file}: {self.lines[file]}" for file in self.failed)

    def to_table(self) -> str:
        """For a terminal."""
        return "\n".join([self._table("simple"), "", *self._texts()])

    def to_markdown(self) -> str:
        """The contents of parity.md."""
        source = self.manifest.source
        verdict = "not passed" if self.failed else "passed"
        lines = [
            f"# Parity of {one_line(self.bundle.name)}: {verdict}",
            "",
            f"Reference: the checkpoint sha256 {source.checkpoint_sha256} ({source.arch}, "
            f"setting {source.setting}, epoch {source.epoch}) in torch, float32.",
            "",
            self._table("github"),
            "",
            *(f"- {text}" for text in self._texts()),
            "",
            *_class_table(self.classes),
            *_provenance(self.manifest.artifacts),
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "bundle": str(self.bundle),
            "id": self.manifest.id,
            "passed": not self.failed,
            "artifacts": [
                {
                    **msgspec.to_builtins(artifact),
                    "line": self.lines[artifact.file],
                    "classes": self._classes(artifact.file),
                }
                for artifact in self.manifest.artifacts
            ],
            "remarks": self.remarks,
        }

    def _classes(self, file: str) -> list[dict[str, Any]]:
        found = self.classes.get(file)
        return [msgspec.to_builtins(change) for change in found.each] if found else []

    def _table(self, style: str) -> str:
        rows = [row for artifact in self.manifest.artifacts for row in _rows(artifact)]
        return tabulate(rows, _HEADERS, tablefmt=style, disable_numparse=True)

    def _texts(self) -> list[str]:
        lines = [f"{file}: {line}" for file, line in self.lines.items()]
        batches = [
            f"{artifact.file}: {describe(artifact.invariance)}"
            for artifact in self.manifest.artifacts
            if artifact.invariance is not None
        ]
        classes = [
            f"{file}: {text}" for file, found in self.classes.items() for text in found.describe()
        ]
        return [*lines, *batches, *classes, *self.remarks]


Show = Callable[[Report], None]  # how a caller shows a report before it is written


def unseen(report: Report) -> None:
    """A no-op, for callers that use the report which is returned."""


def report_on(
    place: Path,
    manifest: Manifest,
    judged: dict[Run, Judgement],
    reasons: dict[str, str],
    reference: Reference,
    images: ImageFolder,
) -> Report:
    """Put the new evidence into `manifest`, and say what it and the images show.

    `images` are in the order of `reference`. An artefact without a judgement keeps its evidence;
    `reasons` say why it was not run. What weakens the images as evidence is logged too.
    """
    artifacts = [_with_evidence(artifact, judged) for artifact in manifest.artifacts]
    best = best_by_file(judged)
    parity = next(iter(judged.values())).parity
    remarks = remarks_on(
        reference,
        manifest.classes,
        images.data,
        parity.confidence,
        files=images.files,
        num_copies=parity.copies,
    )
    remarks += filter(None, (gain_remark(file, found.parity) for file, found in best.items()))
    remarks += [
        f"{run.file} is not served on {run.backend}: {found.line}"
        for run, found in judged.items()
        if found.parity.verdict != "passed" and best[run.file].parity.verdict == "passed"
    ]
    return Report(
        bundle=place,
        manifest=msgspec.structs.replace(manifest, artifacts=artifacts),
        lines={
            artifact.file: best[artifact.file].line
            if artifact.file in best
            else _not_run(artifact, reasons[artifact.file])
            for artifact in artifacts
        },
        remarks=[*remarks, *_explanations(judged, best)],
        classes={file: found.classes for file, found in best.items() if found.classes},
        failed=[
            artifact.file
            for artifact in artifacts
            if artifact.file in best and best[artifact.file].parity.verdict != "passed"
        ],
    )


def _explanations(judged: dict[Run, Judgement], best: dict[str, Judgement]) -> list[str]:
    """Why artefacts failed: once for each that failed everywhere, and where one failed alone."""
    return [
        found.explanation
        for run, found in judged.items()
        if found.explanation
        and (found is best[run.file] or best[run.file].parity.verdict == "passed")
    ]


def _with_evidence(artifact: Artifact, judged: dict[Run, Judgement]) -> Artifact:
    """The artefact with this machine's evidence beside that of other kinds of processor.

    What is judged again is replaced, and what says nothing of its processor. The exporting
    machine's best stays first unless it was taken here, on the same kind.
    """
    ranked = sorted(
        (found for run, found in judged.items() if run.file == artifact.file),
        key=lambda found: found.rank,
    )
    new = [found.evidence for found in ranked]
    replaced = {kind for row in new for kind in (row.kind, (row.backend, ""))}
    kept = [row for row in artifact.known if row.kind not in replaced]
    is_first_kept = bool(kept) and kept[0] == artifact.known[0]
    rows = kept + new if is_first_kept else new + kept
    if not rows:
        return artifact
    first = rows[0]
    return msgspec.structs.replace(
        artifact, parity=first.parity, invariance=first.invariance, evidence=rows
    )


def _not_run(artifact: Artifact, reason: str) -> str:
    if artifact.parity is None:
        return f"not verified here: {reason}"
    earlier = f"{artifact.parity.verdict.replace('_', ' ')} on {artifact.parity.ran_on}"
    return f"not run here, keeps its evidence ({earlier}): {reason}"


def _rows(artifact: Artifact) -> list[tuple[str, ...]]:
    """One per backend and kind of processor."""
    if not artifact.known:
        return [(artifact.file, "not verified", *[""] * (len(_HEADERS) - 2))]
    return [
        (
            artifact.file,
            row.parity.verdict.replace("_", " "),
            *_change(row.parity.top1),
            *_change(row.parity.top5),
            f"{row.parity.agreement:.2f} %",
            row.ran_on,
            "" if row.images_per_s is None else f"{row.images_per_s:g}",
        )
        for row in artifact.known
    ]


def _change(change: ErrorChange) -> tuple[str, str]:
    errors = f"{change.reference_error:.2f} -> {change.error:.2f} %"
    return errors, f"{change.lost}, {change.gained}"


def _class_table(classes: dict[str, ClassChanges]) -> list[str]:
    """Per artefact the classes that changed, or have too few images for a verdict of their own."""
    rows = [
        (
            file,
            markdown_cell(change.label),
            str(change.images),
            f"{change.lost}, {change.gained}",
            f"{change.lower_loss_points:.2f} to {change.upper_loss_points:.2f}",
        )
        for file, found in classes.items()
        for change in found.each
        if change.lost or change.gained or change.images < found.fewest
    ]
    if not rows:
        return []
    headers = ("artefact", "class", "images", "lost, gained", "loss, points")
    return [tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]


def _provenance(artifacts: list[Artifact]) -> list[str]:
    """Per artefact: hash, parent, builders, GPU, images and the largest logit difference."""
    rows = []
    for artifact in artifacts:
        built_with = ", ".join(f"{name} {version}" for name, version in artifact.built_with.items())
        parity = artifact.parity
        evidence = (
            (
                str(parity.n),
                parity.data_sha256[:12],
                f"{parity.max_abs_logit_diff:.1e}",
                parity.machine,
            )
            if parity
            else ("", "", "", "")
        )
        rows.append(
            (
                artifact.file,
                artifact.precision,
                artifact.sha256[:12],
                artifact.built_from[:12],
                built_with,
                artifact.gpu or "",
                *evidence,
            )
        )
    headers = (
        "artefact",
        "precision",
        "sha256",
        "built from",
        "built with",
        "GPU",
        "images",
        "their sha256",
        "largest logit difference",
        "judged on",
    )
    return [tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]
