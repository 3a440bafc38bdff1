"""A few images with known answers, kept in the bundle, with which a server tests its engine.

The export writes `selftest.npz`, and a server reads it before a model takes requests: so an engine
that loads but computes nonsense (bad driver, damaged memory) is found before a client meets it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from irv2.errors import BundleError, EngineError
from irv2.system.arrays import bytes_from_arrays, load_arrays
from irv2.types import FloatArray, IntArray, UInt8Array

SELF_TEST = "selftest.npz"
NUM_IMAGES = 4  # about a megabyte of noisy pixels at 299x299; of different classes if possible


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Preprocessed images, with the checkpoint's best class for each and its margin."""

    images: UInt8Array  # (n, S, S, 3) RGB
    top1: IntArray  # (n,)
    margins: FloatArray  # (n,): best logit minus second best

    def batch(self, size: int) -> UInt8Array:
        """Repeat the images to a batch of `size`, uint8 (size, S, S, 3)."""
        return self.images[self._rows(size)]

    def check(self, logits: FloatArray, backend: str) -> None:
        """Raise EngineError if `logits` (size, num_classes) of `batch(size)` give a wrong class."""
        size = len(logits)
        wrong = int((logits.argmax(axis=1) != self.top1[self._rows(size)]).sum())
        if wrong:
            raise EngineError(
                f"self-test with {backend}",
                f"{wrong} of {size} known images in a batch of {size} got another class",
                "the checkpoint's",
                "run `irv2 verify` on this machine",
            )

    def _rows(self, size: int) -> IntArray:
        return np.arange(size) % len(self.images)

    def to_bytes(self) -> bytes:
        """Return the contents of selftest.npz."""
        return bytes_from_arrays(images=self.images, top1=self.top1, margins=self.margins)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read selftest.npz; raises BundleError."""
        try:
            return cls(*load_arrays(path, "images", "top1", "margins"))
        except ValueError as error:
            raise BundleError(path, str(error), "images and answers", "export it again") from error
