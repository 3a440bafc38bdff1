"""The gate's report: a table on screen, parity.md in the bundle, and the same as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tabulate import tabulate

from irv2.convert.gate.invariance import describe
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.verdict import (
    CONFIDENCE,
    TOLERANCE_POINTS,
    Judgement,
    is_above_chance,
    smallest_passing_n,
    upper_loss_points,
)
from irv2.errors import Irv2Error, ParityError
from irv2.manifest import Artifact, ErrorChange, Manifest

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
    remarks: list[str]  # what the images can show
    failed: list[str]  # artefact files that did not pass

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
        lines = [
            f"# Parity of {self.bundle.name}: {'not passed' if self.failed else 'passed'}",
            "",
            f"Reference: the checkpoint sha256 {source.checkpoint_sha256} ({source.arch}, "
            f"setting {source.setting}, epoch {source.epoch}) in torch, float32.",
            "",
            self._table("github"),
            "",
            *(f"- {text}" for text in self._texts()),
            "",
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
                {**msgspec.to_builtins(artifact), "line": self.lines[artifact.file]}
                for artifact in self.manifest.artifacts
            ],
            "remarks": self.remarks,
        }

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
        return [*lines, *batches, *self.remarks]


class UnwrittenError(Irv2Error):
    """A verdict that can't be written down, with its report; exits as the verdict alone would."""

    def __init__(self, report: Report, error: OSError) -> None:
        super().__init__(
            error.filename or report.bundle,
            f"can't be written ({error.strerror})",
            way_out=f"not passed: {report.failure}" if report.failed else "passed",
        )
        self.report = report
        self.exit_code = ParityError.exit_code if report.failed else Irv2Error.exit_code


@contextmanager
def written_down(report: Report) -> Iterator[None]:
    """Around what writes a report: raises UnwrittenError, by which it can still be printed."""
    try:
        yield
    except OSError as error:
        raise UnwrittenError(report, error) from error


def report_on(
    place: Path,
    manifest: Manifest,
    judged: dict[str, Judgement],
    reasons: dict[str, str],
    remarks: list[str],
) -> Report:
    """The new evidence in `manifest`; per artefact a line with its judgement or why it has none."""
    artifacts = with_judgements(manifest.artifacts, judged)
    return Report(
        bundle=place,
        manifest=msgspec.structs.replace(manifest, artifacts=artifacts),
        lines={
            artifact.file: judged[artifact.file].line
            if artifact.file in judged
            else _kept(artifact, reasons[artifact.file])
            for artifact in artifacts
        },
        remarks=[*remarks, *(found.explanation for found in judged.values() if found.explanation)],
        failed=[f for f, judgement in judged.items() if judgement.parity.verdict != "passed"],
    )


def with_judgements(artifacts: list[Artifact], judged: dict[str, Judgement]) -> list[Artifact]:
    """The artefacts with their new evidence; those without any keep what they had."""
    return [
        msgspec.structs.replace(artifact, parity=found.parity, invariance=found.invariance)
        if (found := judged.get(artifact.file))
        else artifact
        for artifact in artifacts
    ]


def _kept(artifact: Artifact, reason: str) -> str:
    if artifact.parity is None:
        return f"not verified here: {reason}"
    earlier = f"{artifact.parity.verdict.replace('_', ' ')} on {artifact.parity.ran_on}"
    return f"not run here, keeps its evidence ({earlier}): {reason}"


def remarks_on(reference: Reference, num_classes: int, confidence: float = CONFIDENCE) -> list[str]:
    """What these images can show at best, and what weakens them as evidence."""
    n, tolerances = len(reference), list(TOLERANCE_POINTS.values())
    remarks = [
        f"These {n} images can't show a loss below {upper_loss_points(0, 0, n, confidence):.2f} "
        f"points ({100 * confidence:g} %), even with none lost. To show "
        + " / ".join(map(str, tolerances))
        + " points takes at least "
        + " / ".join(str(smallest_passing_n(t, confidence)) for t in tolerances)
        + " images."
    ]
    if num_classes <= 10:
        remarks.append(
            f"With {num_classes} classes top-5 is nearly empty as evidence: guessing is right "
            f"in {100 * min(1, 5 / num_classes):.0f} % of cases."
        )
    weakness = chance_remark(reference, num_classes)
    return [*remarks, weakness] if weakness else remarks


def chance_remark(reference: Reference, num_classes: int) -> str:
    """Said of a checkpoint that may be guessing; empty for others."""
    n, num_right = len(reference), int(reference.top1_right.sum())
    if is_above_chance(num_right, n, num_classes):
        return ""
    return (
        f"The checkpoint is right on {num_right} of {n} images, which is not shown to be better "
        f"than chance ({100 / num_classes:.3g} %): agreeing with it says little."
    )


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
