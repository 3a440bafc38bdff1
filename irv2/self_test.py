"""A few images with known answers, kept in the bundle, on which a server tries its engine.

`selftest.npz` is written by the export and read before a model takes requests: an engine that
loads but computes nonsense (a driver, a damaged memory) is found before any client meets it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from irv2.errors import BundleError, EngineError
from irv2.system.arrays import bytes_from_arrays, load_arrays
from irv2.types import FloatArray, IntArray, UInt8Array

SELF_TEST = "selftest.npz"
NUM_IMAGES = 4  # about a megabyte of noise-like pixels at 299; of different classes if possible


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Preprocessed images, the checkpoint's best class of each, and by how much it was best."""

    images: UInt8Array  # (n, S, S, 3) RGB
    top1: IntArray  # (n,)
    margins: FloatArray  # (n,): best logit minus second best

    def batch(self, size: int) -> UInt8Array:
        """A batch of them, (size, S, S, 3)."""
        return self.images[self._rows(size)]

    def check(self, logits: FloatArray, backend: str) -> None:
        """Raise EngineError where an answer to `batch`, (size, num_classes), is wrong."""
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
        """The contents of selftest.npz."""
        return bytes_from_arrays(images=self.images, top1=self.top1, margins=self.margins)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read selftest.npz; raises BundleError."""
        try:
            return cls(*load_arrays(path, "images", "top1", "margins"))
        except ValueError as error:
            raise BundleError(path, str(error), "images and answers", "export it again") from error
