"""Estimates of the range that 8 bits should hold, from a histogram that takes values as they come.

Values beyond a range are clipped; the narrower it is, the finer are the steps within.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from irv2.types import Float64Array, FloatArray, IntArray

Method = Literal["minmax", "percentile", "mse"]
Range = tuple[float, float]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTAGE = 99.99  # of the values lie in percentile's range, half of the others on each side
_BITS = 13
_HALF = 1 << _BITS  # bins on each side of 0
_LEVELS = 255
# Of the largest magnitude. At 1/16 the 255 steps are still no finer than the bins.
_SHARES = 2.0 ** np.arange(0, -4.001, -1 / 8)


@dataclass(slots=True)
class Histogram:
    """Counts in bins around 0 whose width, a power of 2, doubles until they hold all values.

    Bins of one width are pairs of bins of the width before, so the order of the values makes no
    difference, and each is needed only once.
    """

    exponent: int = -100  # the bins hold magnitudes below 2^exponent
    counts: IntArray = field(default_factory=lambda: np.zeros(2 * _HALF, np.int64))

    @property
    def edges(self) -> Float64Array:
        """The lower edge of each bin, then the upper edge of the last one."""
        indices = np.arange(-_HALF, _HALF + 1, dtype=np.float64)
        return indices * float(2.0 ** (self.exponent - _BITS))

    def add(self, values: FloatArray) -> None:
        """Count float32 values of any shape, unless one of them is not finite."""
        largest = max(abs(float(values.max())), abs(float(values.min())))
        if largest == 0:
            self.counts[_HALF] += values.size
        elif np.isfinite(largest):
            self._widen(int(np.frexp(largest)[1]))
            bins = np.floor(values * np.float32(2.0 ** (_BITS - self.exponent))).astype(np.int32)
            self.counts += np.bincount(bins.ravel() + _HALF, minlength=2 * _HALF)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            merged = np.arange(-_HALF, _HALF) >> (exponent - self.exponent)
            counts = np.zeros_like(self.counts)
            np.add.at(counts, merged + _HALF, self.counts)
            self.exponent, self.counts = exponent, counts


def estimate(histogram: Histogram, smallest: float, largest: float) -> dict[Method, Range]:
    """The range by each method; the histogram may be of some of the values, the extremes of all."""
    if not (np.isfinite([smallest, largest]).all() and histogram.counts.any()):
        return dict.fromkeys(METHODS, (smallest, largest))
    low, high = _percentile(histogram)
    return {
        "minmax": (smallest, largest),
        "percentile": (max(low, smallest), min(high, largest)),
        "mse": _least_error(histogram, smallest, largest),
    }


def _percentile(histogram: Histogram) -> Range:
    cumulative = histogram.counts.cumsum()
    tail = (1 - PERCENTAGE / 100) / 2 * cumulative[-1]
    low = histogram.edges[np.searchsorted(cumulative, tail, "right")]
    high = histogram.edges[np.searchsorted(cumulative, cumulative[-1] - tail) + 1]
    return float(low), float(high)


def _least_error(histogram: Histogram, smallest: float, largest: float) -> Range:
    """The range, cut off at one magnitude on both sides, with the least mean squared error.

    Of errors that are equal, the widest range's.
    """
    edges, (filled,) = histogram.edges, histogram.counts.nonzero()
    centers, counts = (edges[filled] + edges[filled + 1]) / 2, histogram.counts[filled]
    ranges = [
        (max(smallest, -limit), min(largest, limit))
        for limit in (max(-smallest, largest) * _SHARES).tolist()
    ]
    return min(ranges, key=lambda limits: float((_squared_error(centers, *limits) * counts).sum()))


def _squared_error(values: Float64Array, low: float, high: float) -> Float64Array:
    """Of each value, if 255 even steps hold this range and 0 is one of their ends."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / _LEVELS or 1.0
    zero = np.round(-low / step)
    levels = np.clip(np.round(values / step) + zero, 0, _LEVELS)
    errors: Float64Array = ((levels - zero) * step - values) ** 2
    return errors
