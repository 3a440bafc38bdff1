"""How often two models give a picture the same best class, with exact limits (docs/gate.md).

The gate's verdict on disagreement, for pictures without labels. Servers and clients have no SciPy,
so Clopper and Pearson's limits are computed here from the binomial sums that define them.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

from irv2.manifest import Verdict
from irv2.system.text import two_digits

CONFIDENCE = 0.95  # one-sided, as in the gate
_PRECISION = 1e-12  # of a limit, which is 0 to 1
_GROWTH = 1.02  # steps of the search for a number of pictures
_ENOUGH = 10**9  # where that search ends


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of `num` pictures that two models saw, `changed` got another best class from the second."""

    num: int
    changed: int

    @property
    def upper_percent(self) -> float:
        """Upper limit of the rate of disagreement."""
        return 100 * _upper_limit(self.changed, self.num)

    @property
    def lower_percent(self) -> float:
        """Lower limit of the rate of disagreement."""
        return 100 * (1 - _upper_limit(self.num - self.changed, self.num)) if self.changed else 0.0

    def verdict(self, limit_percent: float) -> Verdict:
        """What the counts say about a rate of disagreement of `limit_percent`."""
        if self.upper_percent <= limit_percent:
            return "passed"
        return "failed" if self.lower_percent > limit_percent else "too_few_images"

    def num_needed(self, limit_percent: float) -> int | None:
        """How many pictures like these would pass; None if no number would."""
        if not self.num:
            return smallest_passing_n(limit_percent)
        if 100 * self.changed / self.num >= limit_percent:
            return None
        num_steps = math.ceil(math.log(_ENOUGH / self.num, _GROWTH))
        numbers = [math.ceil(self.num * _GROWTH**step) for step in range(num_steps)]
        at = bisect_left(
            numbers,
            True,
            key=lambda num: _is_below(
                math.ceil(self.changed * num / self.num), num, limit_percent / 100
            ),
        )
        return numbers[at] if at < len(numbers) else None

    def finding(self, limit_percent: float) -> str:
        """Return the verdict in words, as the gate puts it."""
        verdict = self.verdict(limit_percent)
        failed = verdict == "failed"
        limit = f"above {self.lower_percent:.2f}" if failed else f"below {self.upper_percent:.2f}"
        return (
            f"{verdict.replace('_', ' ')}: {self.changed} of {self.num} answers differ from the "
            f"served model's; disagreement {limit} points ({100 * CONFIDENCE:g} %), "
            f"limit {limit_percent:g}"
        )

    def line(self, limit_percent: float) -> str:
        """Return the finding, and how many pictures would decide; that may take 0.2 s."""
        finding = self.finding(limit_percent)
        if self.verdict(limit_percent) != "too_few_images":
            return finding
        needed = self.num_needed(limit_percent)
        if needed is None:
            return f"{finding}; at this rate no number of images would pass it"
        return f"{finding}; about {two_digits(needed)} like these would decide"


def smallest_passing_n(limit_percent: float, confidence: float = CONFIDENCE) -> int:
    """The fewest pictures that can pass, with every answer the same."""
    if limit_percent >= 100:
        return 1
    return math.ceil(math.log(1 - confidence) / math.log1p(-limit_percent / 100))


def _upper_limit(k: int, n: int) -> float:
    """Clopper and Pearson's upper limit of the rate behind `k` of `n`, 0 to 1.

    It is the rate at which `k` or fewer of `n` have become as rare as the confidence allows.
    """
    if k >= n:
        return 1.0
    low, high = k / n, 1.0
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if _is_below(k, n, middle) else (middle, high)
    return high


def _is_below(k: int, n: int, rate: float) -> bool:
    """Whether the limit of `k` of `n` is at most `rate`, which is above k / n."""
    return rate >= 1 or _at_most(k, n, rate) <= 1 - CONFIDENCE


def _at_most(k: int, n: int, rate: float) -> float:
    """The probability of `k` or fewer of `n`, for a `rate` of k / n or more.

    The terms fall from that of `k` on, and are added until they no longer count.
    """
    term = total = 1.0  # in units of the first
    for i in range(k, 0, -1):
        term *= i * (1 - rate) / ((n - i + 1) * rate)
        total += term
        if term < total * 1e-17:
            break
    choices = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return total * math.exp(choices + k * math.log(rate) + (n - k) * math.log1p(-rate))
