"""The parity gate: does an artefact decide like the checkpoint? (docs/gate.md)

Counts which images changed between right and wrong, and bounds the change of the error by MOVER
(Zou and Donner's method of variance estimates recovery) from one-sided Clopper-Pearson limits.
Only statistics: neither torch nor an engine is needed here.
"""

import math
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.special import betaincinv

from irv2.convert.gate.reference import Reference
from irv2.errors import UsageError
from irv2.ledger import Ledger
from irv2.manifest import AcceptedLoss, ErrorChange, Invariance, Parity, Precision, Verdict
from irv2.results import top_k_indices
from irv2.types import FloatArray, IntArray

CONFIDENCE = 0.95  # one-sided
TOLERANCE_POINTS: dict[Precision, float] = {"fp32": 0.1, "fp16": 0.25, "bf16": 0.5, "int8": 1.0}
SAMPLE_TOLERANCE_POINTS = 2.5  # 360 images can't show less than 0.83; fp32 keeps its own
IDENTICAL_LOGITS = 1e-4  # largest difference, relative to the largest reference logit
_GROWTH = 1.02  # steps of the search for an image count
_ENOUGH_IMAGES = 10**9  # where that search ends

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """The loss that is accepted, in percentage points, and how sure the gate has to be."""

    top1_points: float
    top5_points: float
    confidence: float = CONFIDENCE
    is_sample: bool = False  # the built-in sample's row, wider than any other: its lines say so

    def __post_init__(self) -> None:
        if min(self.top1_points, self.top5_points) <= 0:
            raise UsageError("tolerance", f"{self.top1_points}", "more than 0 points")
        if not 0.5 <= self.confidence < 1:
            raise UsageError("confidence", f"{self.confidence}", "0.5 to below 1")

    @property
    def accepted_loss(self) -> AcceptedLoss:
        """What the bundle records of it, for a gate on another machine."""
        return AcceptedLoss(
            top1_points=self.top1_points, top5_points=self.top5_points, confidence=self.confidence
        )


def tolerance_for(
    precision: Precision,
    *,
    is_sample: bool = False,
    top1_points: float | None = None,
    top5_points: float | None = None,
    confidence: float = CONFIDENCE,
) -> Tolerance:
    """The row of the table for `precision`; values given by the user replace it."""
    sample_row = is_sample and precision != "fp32"
    row = SAMPLE_TOLERANCE_POINTS if sample_row else TOLERANCE_POINTS[precision]
    return Tolerance(
        top1_points=row if top1_points is None else top1_points,
        top5_points=row if top5_points is None else top5_points,
        confidence=confidence,
        is_sample=sample_row,
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """The evidence for one artefact and the one line that says what it means."""

    parity: Parity
    line: str
    invariance: Invariance | None = None
    ledger: Ledger | None = None
    explanation: str = ""  # of a failure: where the artefact departs, and what to try


def judge(
    reference: Reference,
    logits: FloatArray,
    precision: Precision,
    tolerance: Tolerance,
    ran_on: str,
) -> Judgement:
    """Compare float logits (n, num_classes), in the order of `reference`, with the reference.

    An image with a logit that is not finite counts as answered wrongly, and fails the artefact
    whatever the limits say: probabilities made of it would be nonsense.
    """
    is_finite: BoolArray = np.asarray(np.isfinite(logits).all(axis=1))
    top5: IntArray = np.where(is_finite[:, None], top_k_indices(logits, 5), -1)
    top1_change, top5_change = _changes(reference, top5, tolerance)
    n = len(reference)
    parity = Parity(
        verdict=max(
            _verdict(top1_change, n, tolerance.confidence),
            _verdict(top5_change, n, tolerance.confidence),
            key=_severity,
        ),
        basis="interval",
        n=n,
        data_sha256=reference.data_sha256,
        confidence=tolerance.confidence,
        agreement=100 * float((top5[:, 0] == reference.top5[:, 0]).mean()),
        max_abs_logit_diff=reference.max_abs_difference(logits),
        ran_on=ran_on,
        top1=top1_change,
        top5=top5_change,
    )
    if num_bad := int((~is_finite).sum()):
        line = f"{precision} failed: {num_bad} of {parity.n} images gave logits that are not finite"
        return Judgement(replace(parity, verdict="failed"), line)
    if precision == "fp32" and _is_identical(parity, reference):
        parity = replace(parity, verdict="passed", basis="identical")
    return Judgement(parity, _line(parity, precision, tolerance, reference.max_abs_logit))


def verdict(
    lost: int, gained: int, n: int, tolerance_points: float, confidence: float = CONFIDENCE
) -> Verdict:
    """What `lost` and `gained` of `n` images say about a loss of `tolerance_points`."""
    if upper_loss_points(lost, gained, n, confidence) <= tolerance_points:
        return "passed"
    if lower_loss_points(lost, gained, n, confidence) > tolerance_points:
        return "failed"
    return "too_few_images"


def upper_loss_points(
    lost: float, gained: float, n: float, confidence: float = CONFIDENCE
) -> float:
    """Upper limit of the increase of the error, in percentage points."""
    above_lost = _upper(lost, n, confidence) - lost / n
    below_gained = gained / n - _lower(gained, n, confidence)
    return 100 * ((lost - gained) / n + math.hypot(above_lost, below_gained))


def lower_loss_points(
    lost: float, gained: float, n: float, confidence: float = CONFIDENCE
) -> float:
    """Lower limit of the increase of the error, in percentage points."""
    return -upper_loss_points(gained, lost, n, confidence)


def images_to_decide(
    lost: int, gained: int, n: int, tolerance_points: float, confidence: float = CONFIDENCE
) -> int | None:
    """How many images like these would pass; None if no number would."""
    # The limit falls towards the rate itself, so a rate at the tolerance is never passed.
    if 100 * (lost - gained) / n >= tolerance_points:
        return None
    num = n
    step = 0
    while num < _ENOUGH_IMAGES:
        scale = num / n
        if upper_loss_points(lost * scale, gained * scale, num, confidence) <= tolerance_points:
            return num
        step += 1
        num = math.ceil(n * _GROWTH**step)
    return None


def smallest_passing_n(tolerance_points: float, confidence: float = CONFIDENCE) -> int:
    """The fewest images that can pass, with no image lost and none gained."""
    if tolerance_points >= 100:
        return 1
    return math.ceil(math.log(1 - confidence) / math.log1p(-tolerance_points / 100))


def is_above_chance(num_right: int, n: int, num_classes: int) -> bool:
    """Whether the reference is better than guessing, at the gate's confidence."""
    return _lower(num_right, n, CONFIDENCE) > 1 / num_classes


def _upper(k: float, n: float, confidence: float) -> float:
    """Clopper-Pearson's one-sided upper limit of the rate behind `k` of `n`."""
    return 1.0 if k >= n else float(betaincinv(k + 1, n - k, confidence))


def _lower(k: float, n: float, confidence: float) -> float:
    return 0.0 if k <= 0 else float(betaincinv(k, n - k + 1, 1 - confidence))


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


def _verdict(change: ErrorChange, n: int, confidence: float) -> Verdict:
    return verdict(change.lost, change.gained, n, change.tolerance_points, confidence)


def _severity(of: Verdict) -> int:
    """Both top-1 and top-5 have to pass; a failure outweighs too few images."""
    return ("passed", "too_few_images", "failed").index(of)


def _is_identical(parity: Parity, reference: Reference) -> bool:
    """No decision changed, and no logit by more than float32's rounding through the network."""
    changes = (parity.top1.lost, parity.top1.gained, parity.top5.lost, parity.top5.gained)
    limit = IDENTICAL_LOGITS * reference.max_abs_logit
    return not any(changes) and parity.agreement == 100 and parity.max_abs_logit_diff <= limit


def _line(parity: Parity, precision: Precision, tolerance: Tolerance, max_abs_logit: float) -> str:
    if parity.basis == "identical":
        return (
            f"{precision} passed: identical on all {parity.n} images (largest logit difference "
            f"{parity.max_abs_logit_diff:.1e}, limit {IDENTICAL_LOGITS * max_abs_logit:.1e})"
        )
    by_top5 = _verdict(parity.top1, parity.n, parity.confidence) != parity.verdict
    # The line is about what decided.
    change = parity.top5 if by_top5 else parity.top1
    counts = (change.lost, change.gained, parity.n)
    what = f"{precision} {parity.verdict.replace('_', ' ')}" + (" on top-5" if by_top5 else "")
    percent = f"({100 * parity.confidence:g} %)"
    if parity.verdict == "failed":
        bound = f"loss above {lower_loss_points(*counts, parity.confidence):.2f} points {percent}"
    else:
        bound = f"loss below {change.upper_loss_points:.2f} points {percent}"
    return (
        f"{what}: {change.lost} lost, {change.gained} gained of {parity.n}; {bound}, "
        f"tolerance {change.tolerance_points}{_sample_remark(parity, tolerance)}"
        f"{_images_remark(parity, by_top5)}"
    )


def _sample_remark(parity: Parity, tolerance: Tolerance) -> str:
    if not tolerance.is_sample:
        return ""
    least = upper_loss_points(0, 0, parity.n, parity.confidence)
    return f" (built-in sample; {parity.n} images can't show less than {least:.2f})"


def _images_remark(parity: Parity, by_top5: bool) -> str:
    """How many images would decide both top-1 and top-5, and which of the two needs that many."""
    if parity.verdict != "too_few_images":
        return ""
    needed = {
        name: images_to_decide(
            change.lost, change.gained, parity.n, change.tolerance_points, parity.confidence
        )
        for name, change in (("", parity.top1), ("for top-5 ", parity.top5))
        if _verdict(change, parity.n, parity.confidence) == "too_few_images"
    }
    name, num = max(needed.items(), key=lambda item: math.inf if item[1] is None else item[1])
    where = "" if by_top5 else name  # the line has named top-5 already
    if num is None:
        return f"; {where}at this rate no number of images would pass it"
    return f"; {where}about {_two_digits(num)} like these would decide"


def _two_digits(num: int) -> int:
    """Rounded up to two significant digits, so that the number still suffices."""
    unit: int = 10 ** max(0, len(str(num)) - 2)
    return -(-num // unit) * unit
