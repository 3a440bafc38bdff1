"""A model's answers to labelled images, and everything that `irv2 eval` says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from irv2.data.dataset import ImageFolder
from irv2.errors import EngineError
from irv2.images.crops import log_probabilities
from irv2.ledger import LEGACY_BATCH_SIZE, Ledger, Predictions
from irv2.measures.calibration import Calibration, calibrate
from irv2.measures.classes import Confusion
from irv2.measures.estimates import Estimate, proportion
from irv2.types import Float64Array, IntArray


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Answers to `images`, one row per image, in their order.

    Raises EngineError for logits that are not finite, which have no best class.
    """

    predictions: Predictions
    images: ImageFolder
    classes: Sequence[str]
    data: Path  # the folder with val/ in it, or the list
    backend: str
    crops: int = 1
    split: str = "val"

    def __post_init__(self) -> None:
        if bad := int((~np.isfinite(self.predictions.logits).all(axis=1)).sum()):
            got = f"{bad} of {len(self.predictions)} images gave logits that are not finite"
            raise EngineError(self.backend, got, "numbers")

    @cached_property
    def ledger(self) -> Ledger:
        """The answers as they are kept on file."""
        return Ledger.from_predictions(self.predictions)

    @property
    def best(self) -> IntArray:
        """The best class of each image: (n,)."""
        return self.ledger.top5[:, 0]

    def log_probabilities(self, classes: IntArray) -> Float64Array:
        """Return the natural logarithm of the probability of one class per image: (n,)."""
        return log_probabilities(self.predictions.logits, self.crops, classes)

    @cached_property
    def confusion(self) -> Confusion:
        """Labels against best classes."""
        return Confusion.count(self.predictions.labels, self.best, self.classes)

    @cached_property
    def calibration(self) -> Calibration:
        """Accuracy against the probability of the best class."""
        return calibrate(np.exp(self.log_probabilities(self.best)), self.ledger.top1_right)

    @property
    def top1_error(self) -> Estimate:
        """The top-1 error with its exact interval."""
        n, num_wrong, _ = self.predictions.counts
        found = proportion(num_wrong, n)
        assert found is not None  # no evaluation without an image
        return found

    def legacy_errors(self) -> dict[str, float]:
        """Average as the original did; with ten crops its batches held a tenth of the images."""
        return self.predictions.legacy_errors(max(1, LEGACY_BATCH_SIZE // self.crops))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json."""
        top1 = self.top1_error
        return {
            **self.predictions.errors(),
            "top1_error_interval": [top1.low, top1.high],
            "crops": self.crops,
            "backend": self.backend,
            "data": str(self.data),
            "split": self.split,
            "data_sha256": self.ledger.data_sha256,
            **self.confusion.to_json(),
            "calibration": self.calibration.to_json(),
        }

    def headline(self) -> str:
        """The errors in one line."""
        errors = self.predictions.errors()
        images = "images" if self.split == "val" else f"images of {self.split}"
        return (
            f"{errors['n']} {images}: top-1 error {errors['top1_error']:.3f} %, "
            f"top-5 error {errors['top5_error']:.3f} % ({self.backend})"
        )

    def to_text(self) -> str:
        """What follows the headline."""
        top1 = self.top1_error
        parts = (
            f"95 % interval of the top-1 error: {top1.low:.3f} to {top1.high:.3f} %",
            self.calibration.to_text(),
            self.confusion.to_text(),
        )
        return "\n".join(parts)
