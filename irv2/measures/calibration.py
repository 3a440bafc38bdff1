"""Whether a model is right as often as its probabilities say: the expected calibration error.

Source: arXiv:1706.04599, section 2, with its 15 bins of equal width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from irv2.measures.estimates import Estimate, proportion
from irv2.types import BoolArray, Float64Array

NUM_BINS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The images whose best class has a probability in (low, high], in percent."""

    low: float
    high: float
    n: int
    confidence: float | None  # their mean probability, percent; None without images
    accuracy: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "confidence": self.confidence,
            "accuracy": self.accuracy and self.accuracy.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Accuracy beside confidence, bin by bin."""

    n: int
    bins: list[Bin]

    @property
    def error(self) -> float:
        """The mean distance of accuracy and confidence over the images' bins: ECE, in percent.

        Chance alone makes it larger than 0, the more so the fewer images there are.
        """
        return (
            sum(
                b.n * abs(b.accuracy.percent - b.confidence)
                for b in self.bins
                if b.accuracy is not None and b.confidence is not None
            )
            / self.n
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        bins = [each.to_json() for each in self.bins]
        return {"ece": self.error, "n": self.n, "num_bins": len(bins), "bins": bins}

    def to_text(self) -> str:
        """For a terminal."""
        filled = ", ".join(f"{b.n} in {b.low:.0f}-{b.high:.0f} %" for b in self.bins if b.n)
        return (
            f"calibration error {self.error:.2f} % (ECE over {len(self.bins)} bins of {self.n} "
            f"images: {filled})"
        )


def calibrate(confidences: Float64Array, right: BoolArray) -> Calibration:
    """Sort images into bins by the probability (n,), 0 to 1, of their best class."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    bin_of = np.clip(np.digitize(confidences, edges, right=True) - 1, 0, NUM_BINS - 1)
    bins = []
    for i in range(NUM_BINS):
        inside = bin_of == i
        n = int(inside.sum())
        bins.append(
            Bin(
                low=100 * float(edges[i]),
                high=100 * float(edges[i + 1]),
                n=n,
                confidence=100 * float(confidences[inside].mean()) if n else None,
                accuracy=proportion(int(right[inside].sum()), n),
            )
        )
    return Calibration(n=len(right), bins=bins)
