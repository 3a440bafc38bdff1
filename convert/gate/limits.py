"""The arithmetic of the gate: exact limits of what was counted (docs/gate.md).

The change of the error is bounded by MOVER (Zou and Donner's method of variance estimates
recovery) from one-sided Clopper-Pearson limits of the two rates; the rate of changed answers by
the Clopper-Pearson limits alone. Limits are percentage points, or percent.
"""

import math
from collections.abc import Callable

from irv2.manifest import Verdict
from irv2.measures.estimates import lower_limit, upper_limit

CONFIDENCE = 0.95  # one-sided
_GROWTH = 1.02  # steps of the search for an image count
_ENOUGH_IMAGES = 10**9  # where that search ends


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
    above_lost = upper_limit(lost, n, confidence) - lost / n
    below_gained = gained / n - lower_limit(gained, n, confidence)
    return 100 * ((lost - gained) / n + math.hypot(above_lost, below_gained))


def lower_loss_points(
    lost: float, gained: float, n: float, confidence: float = CONFIDENCE
) -> float:
    """Lower limit of the increase of the error, in percentage points."""
    return -upper_loss_points(gained, lost, n, confidence)


def disagreement_verdict(
    changed: int, n: int, limit_points: float, confidence: float = CONFIDENCE
) -> Verdict:
    """What `changed` of `n` answers say about a rate of `limit_points` percent."""
    if upper_points(changed, n, confidence) <= limit_points:
        return "passed"
    if lower_points(changed, n, confidence) > limit_points:
        return "failed"
    return "too_few_images"


def upper_points(k: float, n: float, confidence: float = CONFIDENCE) -> float:
    """Upper limit of the rate behind `k` of `n`, in percent."""
    return 100 * upper_limit(k, n, confidence)


def lower_points(k: float, n: float, confidence: float = CONFIDENCE) -> float:
    """Lower limit of the rate behind `k` of `n`, in percent."""
    return 100 * lower_limit(k, n, confidence)


def images_to_decide(
    lost: int, gained: int, n: int, tolerance_points: float, confidence: float = CONFIDENCE
) -> int | None:
    """How many images like these would pass; None if no number would."""
    # The limit falls towards the rate itself, so a rate at the tolerance is never passed.
    if 100 * (lost - gained) / n >= tolerance_points:
        return None
    return _first_number(
        n,
        lambda num: (
            upper_loss_points(lost * num / n, gained * num / n, num, confidence) <= tolerance_points
        ),
    )


def images_to_agree(
    changed: int, n: int, limit_points: float, confidence: float = CONFIDENCE
) -> int | None:
    """How many images like these would keep the limit of disagreement; None if no number would."""
    if 100 * changed / n >= limit_points:
        return None
    return _first_number(
        n, lambda num: upper_points(changed * num / n, num, confidence) <= limit_points
    )


def smallest_failing_n(tolerance_points: float, confidence: float = CONFIDENCE) -> int:
    """The fewest images that can show a loss above the tolerance, with all of them lost.

    The lower limit is then 1 - sqrt(2) (1 - (1 - confidence)^(1/n)). At 100 points nothing can
    fail, and one image is enough to know it.
    """
    if tolerance_points >= 100:
        return 1
    rate = 1 - (1 - tolerance_points / 100) / math.sqrt(2)
    return math.floor(math.log(1 - confidence) / math.log(rate)) + 1


def is_above_chance(
    num_right: int, n: int, num_classes: int, confidence: float = CONFIDENCE
) -> bool:
    """Whether `num_right` of `n` is better than guessing, by the one-sided exact binomial test."""
    return lower_limit(num_right, n, confidence) > 1 / num_classes


def _first_number(n: int, passes: Callable[[int], bool]) -> int | None:
    """The first of n, ceil(n * 1.02), ceil(n * 1.02^2), ... that passes."""
    num = n
    step = 0
    while num < _ENOUGH_IMAGES:
        if passes(num):
            return num
        step += 1
        num = math.ceil(n * _GROWTH**step)
    return None
