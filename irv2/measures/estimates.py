"""What counts of images say of a rate: the estimate with its number of images and an interval.

Clopper and Pearson's limits of a proportion are exact: an interval of 95 % holds the true value in
at least 95 % of data sets, however few the images. All values are percent.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy.special import betaincinv

CONFIDENCE = 0.95  # of the two-sided intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A rate in percent, the number of images behind it, and its two-sided 95 % interval."""

    percent: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.percent:.1f} ({self.low:.1f}-{self.high:.1f}, n {self.n})"

    def to_json(self) -> dict[str, float]:
        """Plain values, for --json."""
        return asdict(self)


def proportion(k: int, n: int) -> Estimate | None:
    """Return `k` of `n` with its exact interval; None for 0 of 0."""
    if not n:
        return None
    low, high = _limits(k, n)
    return Estimate(percent=100 * k / n, n=n, low=low, high=high)


def f1_score(true_positives: int, n: int) -> Estimate | None:
    """Return F1 = 2 TP / (2 TP + FP + FN) of a class; `n` = TP + FP + FN; None if that is 0.

    F1 is no proportion, but grows with one: p = TP / n, the share of right answers among the images
    that are of the class or were taken for it; F1 = 2p / (1 + p). Given `n`, TP is binomial, so
    the ends of p's exact interval become those of an exact interval for F1.
    """
    p = proportion(true_positives, n)
    if p is None:
        return None
    return Estimate(percent=_f1(p.percent), n=n, low=_f1(p.low), high=_f1(p.high))


def balanced_accuracy(recalls: Sequence[Estimate]) -> Estimate:
    """Return the mean of the classes' recalls; `n` is the number of all images.

    No exact interval of such a mean is known. This one covers two approximate ones, each of which
    is too narrow where the other is not: Clopper and Pearson's for as many images as would give
    the mean the same variance (exact for classes of one size, too narrow where a small class has
    the lower recall), and MOVER's from each recall's interval, as in the gate (too narrow where
    many small classes have recalls near 100 %).
    """
    num, n = len(recalls), sum(recall.n for recall in recalls)
    mean = sum(recall.percent for recall in recalls) / num
    below = math.hypot(*(recall.percent - recall.low for recall in recalls)) / num
    above = math.hypot(*(recall.high - recall.percent for recall in recalls)) / num
    effective_n = num**2 / sum(1 / recall.n for recall in recalls)
    low, high = _limits(mean / 100 * effective_n, effective_n)
    return Estimate(percent=mean, n=n, low=min(low, mean - below), high=max(high, mean + above))


def upper_limit(k: float, n: float, confidence: float) -> float:
    """Clopper and Pearson's one-sided upper limit of the rate behind `k` of `n`, 0 to 1."""
    return 1.0 if k >= n else float(betaincinv(k + 1, n - k, confidence))


def lower_limit(k: float, n: float, confidence: float) -> float:
    """Clopper and Pearson's one-sided lower limit of the rate behind `k` of `n`, 0 to 1."""
    return 0.0 if k <= 0 else float(betaincinv(k, n - k + 1, 1 - confidence))


def _limits(k: float, n: float) -> tuple[float, float]:
    """Return the two-sided limits in percent."""
    one_sided = (1 + CONFIDENCE) / 2
    return 100 * lower_limit(k, n, one_sided), 100 * upper_limit(k, n, one_sided)


def _f1(percent: float) -> float:
    return 200 * percent / (100 + percent)
