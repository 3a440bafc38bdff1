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
from irv2.convert.gate.verdict import Judgement
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
        rows = [_row(artifact) for artifact in self.manifest.artifacts]
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
    judged: dict[str, Judgement],
    reasons: dict[str, str],
    reference: Reference,
    images: ImageFolder,
) -> Report:
    """Put the new evidence into `manifest`, and say what it and the images show.

    `images` are in the order of `reference`. An artefact without a judgement keeps its evidence;
    `reasons` say why it was not run. What weakens the images as evidence is logged too.
    """
    artifacts = [
        msgspec.structs.replace(artifact, parity=found.parity, invariance=found.invariance)
        if (found := judged.get(artifact.file))
        else artifact
        for artifact in manifest.artifacts
    ]
    parity = next(iter(judged.values())).parity
    remarks = remarks_on(
        reference,
        manifest.classes,
        images.data,
        parity.confidence,
        files=images.files,
        num_copies=parity.copies,
    )
    remarks += filter(None, (gain_remark(file, found.parity) for file, found in judged.items()))
    return Report(
        bundle=place,
        manifest=msgspec.structs.replace(manifest, artifacts=artifacts),
        lines={
            artifact.file: judged[artifact.file].line
            if artifact.file in judged
            else _not_run(artifact, reasons[artifact.file])
            for artifact in artifacts
        },
        remarks=[*remarks, *(found.explanation for found in judged.values() if found.explanation)],
        classes={file: found.classes for file, found in judged.items() if found.classes},
        failed=[f for f, judgement in judged.items() if judgement.parity.verdict != "passed"],
    )


def _not_run(artifact: Artifact, reason: str) -> str:
    if artifact.parity is None:
        return f"not verified here: {reason}"
    earlier = f"{artifact.parity.verdict.replace('_', ' ')} on {artifact.parity.ran_on}"
    return f"not run here, keeps its evidence ({earlier}): {reason}"


def _row(artifact: Artifact) -> tuple[str, ...]:
    parity = artifact.parity
    if parity is None:
        return artifact.file, "not verified", "", "", "", "", "", ""
    return (
        artifact.file,
        parity.verdict.replace("_", " "),
        *_change(parity.top1),
        *_change(parity.top5),
        f"{parity.agreement:.2f} %",
        parity.ran_on,
    )


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
