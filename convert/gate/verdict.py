"""The parity gate: does an artefact decide like the checkpoint? (docs/gate.md)

Counts which images changed between right and wrong, and which changed at all, and holds both
against their limits. Only statistics: neither torch nor an engine is needed here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from irv2.convert.gate.classes import ClassChanges, class_changes
from irv2.convert.gate.limits import (
    disagreement_verdict,
    images_to_agree,
    images_to_decide,
    is_above_chance,
    lower_loss_points,
    lower_points,
    upper_loss_points,
    upper_points,
    verdict,
)
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.tolerance import Tolerance
from irv2.ledger import Ledger
from irv2.manifest import (
    Disagreement,
    ErrorChange,
    Evidence,
    Invariance,
    Parity,
    Precision,
    Verdict,
)
from irv2.results import top_k_indices
from irv2.system.text import two_digits
from irv2.types import BoolArray, FloatArray, IntArray

# Largest difference between gaps of leading logits, relative to the reference's typical margin:
# float32 rounding gives 2e-6.
IDENTICAL_LOGITS = 1e-4


class Run(NamedTuple):
    """An artefact's file and the backend that ran it."""

    file: str
    backend: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The evidence for one artefact on one backend and the one line that says what it means."""

    parity: Parity
    line: str
    invariance: Invariance | None = None
    backend_version: str = ""
    instruction_set: str = ""
    threads: int = 0
    images_per_s: float | None = None
    ledger: Ledger | None = None
    classes: ClassChanges | None = None
    explanation: str = ""  # of a failure: where the artefact departs, and what to try

    @property
    def evidence(self) -> Evidence:
        """What the bundle records of it."""
        return Evidence(
            backend=self.parity.ran_on,
            backend_version=self.backend_version,
            instruction_set=self.instruction_set,
            threads=self.threads,
            parity=self.parity,
            invariance=self.invariance,
            images_per_s=self.images_per_s,
        )

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the judgements of one artefact, the best first: what passed, then the fastest."""
        return severity(self.parity.verdict), -(self.images_per_s or 0.0)


def best_by_file(judged: dict[Run, Judgement]) -> dict[str, Judgement]:
    """Each artefact's judgement on the backend that a server would take."""
    ranked = sorted(judged.items(), key=lambda each: each[1].rank, reverse=True)
    return {run.file: judgement for run, judgement in ranked}


@dataclass(frozen=True, slots=True)
class _Check:
    """One of the limits: what was found, in words too, and how many images would decide."""

    name: str  # empty for top-1, which a line need not name
    verdict: Verdict
    text: str
    num_needed: int | None = None  # None: no number would pass; asked only of too few images


def judge(
    reference: Reference,
    logits: FloatArray,
    precision: Precision,
    tolerance: Tolerance,
    ran_on: str,
    classes: Sequence[str] = (),
) -> Judgement:
    """Compare float logits (n, num_classes), in the order of `reference`, with the reference.

    `classes` are the names of the classes. An image with a logit that is not finite counts as
    answered wrongly, and fails the artefact whatever the limits say: probabilities made of it would
    be nonsense. So does a reference that may be guessing, unless the tolerance accepts it: agreeing
    with it proves nothing.
    """
    is_finite: BoolArray = np.asarray(np.isfinite(logits).all(axis=1))
    top5: IntArray = np.where(is_finite[:, None], top_k_indices(logits, 5), -1)
    top1_change, top5_change = _changes(reference, top5, tolerance)
    disagreement = _disagreement(reference, top5, tolerance)
    by_class = class_changes(
        reference,
        top5[:, 0] == reference.labels,
        tolerance_points=tolerance.top1_points,
        confidence=tolerance.confidence,
        classes=classes,
    )
    n, num_right = len(reference), int(reference.top1_right.sum())
    checks = [
        _loss_check("", top1_change, n, tolerance),
        _loss_check("top-5", top5_change, n, tolerance),
        _agreement_check(disagreement, n, tolerance.confidence),
        *(_class_checks(by_class, tolerance) if tolerance.per_class == "fail" else ()),
    ]
    parity = Parity(
        verdict=max((check.verdict for check in checks), key=severity),
        basis="interval",
        n=n,
        distinct=n,
        data_sha256=reference.data_sha256,
        confidence=tolerance.confidence,
        agreement=100 * (n - disagreement.changed) / n,
        max_abs_logit_diff=reference.max_abs_difference(logits),
        ran_on=ran_on,
        top1=top1_change,
        top5=top5_change,
        disagreement=disagreement,
        worst_classes=by_class.worst,
        at_chance=not is_above_chance(num_right, n, logits.shape[1], tolerance.confidence),
    )
    if num_bad := int((~is_finite).sum()):
        line = f"{precision} failed: {num_bad} of {n} images gave logits that are not finite"
        return Judgement(replace(parity, verdict="failed"), line, classes=by_class)
    difference = reference.leading_difference(logits)
    limit = IDENTICAL_LOGITS * reference.typical_margin
    if precision == "fp32" and not _num_changes(parity) and difference <= limit:
        parity = replace(parity, verdict="passed", basis="identical")
        line = (
            f"{precision} passed: identical on all {n} images (largest logit difference "
            f"{difference:.1e}, limit {limit:.1e})"
        )
    else:
        line = _line(checks, parity, precision)
    if not parity.at_chance:
        return Judgement(parity, line, classes=by_class)
    chance = (
        f"the checkpoint is right on {num_right} of {n} images, not shown to be better than chance "
        f"({100 / logits.shape[1]:.3g} %)"
    )
    if tolerance.accept_chance:
        return Judgement(parity, f"{line}; {chance}, which was accepted", classes=by_class)
    way_out = "export one that has learned, judge on more images, or pass --accept-chance"
    before = f"{line}; " if parity.verdict == "failed" else f"{precision} failed: "
    line = f"{before}{chance}; {way_out}"
    return Judgement(replace(parity, verdict="failed"), line, classes=by_class)


def _changes(
    reference: Reference, top5: IntArray, tolerance: Tolerance
) -> tuple[ErrorChange, ErrorChange]:
    """How top-1 and top-5 changed, from the artefact's best classes (n, 5)."""
    is_right: BoolArray = top5 == reference.labels[:, None]
    return (
        _change(reference.top1_right, is_right[:, 0], tolerance.top1_points, tolerance.confidence),
        _change(
            reference.top5_right,
            np.asarray(is_right.any(1)),
            tolerance.top5_points,
            tolerance.confidence,
        ),
    )


def _change(
    was_right: BoolArray, is_right: BoolArray, tolerance_points: float, confidence: float
) -> ErrorChange:
    n = len(was_right)
    lost, gained = int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())
    return ErrorChange(
        reference_error=100 * (n - int(was_right.sum())) / n,
        error=100 * (n - int(is_right.sum())) / n,
        lost=lost,
        gained=gained,
        upper_loss_points=upper_loss_points(lost, gained, n, confidence),
        tolerance_points=tolerance_points,
    )


def _disagreement(reference: Reference, top5: IntArray, tolerance: Tolerance) -> Disagreement:
    """How many images got another best class, right or wrong."""
    changed = int((top5[:, 0] != reference.top5[:, 0]).sum())
    return Disagreement(
        changed=changed,
        upper_points=upper_points(changed, len(reference), tolerance.confidence),
        limit_points=tolerance.disagreement_points,
    )


def _loss_check(name: str, change: ErrorChange, n: int, tolerance: Tolerance) -> _Check:
    limits = (change.lost, change.gained, n, change.tolerance_points, tolerance.confidence)
    found = verdict(*limits)
    lower = lower_loss_points(change.lost, change.gained, n, tolerance.confidence)
    bound = f"above {lower:.2f}" if found == "failed" else f"below {change.upper_loss_points:.2f}"
    text = (
        f"{change.lost} lost, {change.gained} gained of {n}; loss {bound} points "
        f"({100 * tolerance.confidence:g} %), tolerance {change.tolerance_points}"
        f"{_sample_remark(n, tolerance)}"
    )
    needed = images_to_decide(*limits) if found == "too_few_images" else None
    return _Check(name, found, text, needed)


def _agreement_check(found: Disagreement, n: int, confidence: float) -> _Check:
    limits = (found.changed, n, found.limit_points, confidence)
    outcome = disagreement_verdict(*limits)
    bound = (
        f"above {lower_points(found.changed, n, confidence):.2f}"
        if outcome == "failed"
        else f"below {found.upper_points:.2f}"
    )
    text = (
        f"{found.changed} of {n} answers differ from the checkpoint's; disagreement {bound} "
        f"points ({100 * confidence:g} %), limit {found.limit_points}"
    )
    needed = images_to_agree(*limits) if outcome == "too_few_images" else None
    return _Check("agreement", outcome, text, needed)


def _class_checks(found: ClassChanges, tolerance: Tolerance) -> list[_Check]:
    """The classes that are worse: each fails the artefact."""
    percent = f"{100 * tolerance.confidence:g} %, corrected for {len(found.each)} classes"
    return [
        _Check(
            change.label if change is found.together else f"class {change.label}",
            "failed",
            f"{change.lost} lost, {change.gained} gained of {change.images}; loss above "
            f"{change.lower_loss_points:.2f} points ({percent}), "
            f"tolerance {found.tolerance_points}",
        )
        for change in found.worse
    ]


def severity(of: Verdict) -> int:
    """Every limit has to be kept; a failure outweighs too few images."""
    return ("passed", "too_few_images", "failed").index(of)


def _num_changes(parity: Parity) -> int:
    """How many decisions changed, and answers that are wrong either way."""
    changes = (parity.top1.lost, parity.top1.gained, parity.top5.lost, parity.top5.gained)
    return sum(changes) + (parity.disagreement.changed if parity.disagreement else 0)


def _line(checks: list[_Check], parity: Parity, precision: Precision) -> str:
    """What the first check that decided says, and how many images would decide all of them."""
    decider = next(check for check in checks if check.verdict == parity.verdict)
    where = f" on {decider.name}" if decider.name else ""
    line = f"{precision} {parity.verdict.replace('_', ' ')}{where}: {decider.text}"
    if parity.verdict != "too_few_images":
        return line
    undecided = [check for check in checks if check.verdict == "too_few_images"]
    slowest = max(
        undecided, key=lambda check: math.inf if check.num_needed is None else check.num_needed
    )
    which = "" if slowest is decider else f"for {slowest.name} "  # the line has named the decider
    if slowest.num_needed is None:
        return f"{line}; {which}at this rate no number of images would pass it"
    return f"{line}; {which}about {two_digits(slowest.num_needed)} like these would decide"


def _sample_remark(n: int, tolerance: Tolerance) -> str:
    if not tolerance.is_sample:
        return ""
    least = upper_loss_points(0, 0, n, tolerance.confidence)
    return f" (built-in sample; {n} images can't show less than {least:.2f})"
