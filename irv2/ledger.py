"""A model's answers on labelled images: fresh from a run (`Predictions`), or on file (`Ledger`).

A bundle holds a ledger per artefact and the checkpoint's own as reference.npz; `irv2 eval --ledger`
writes the same for any model. `irv2 diff` compares two of them.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from irv2.errors import BundleError
from irv2.results import margins_of, top_k_indices, typical_margin
from irv2.system.arrays import bytes_from_arrays, load_arrays
from irv2.types import BoolArray, FloatArray, IntArray

_ARRAYS = ("sha256", "labels", "top5", "top5_logits", "margins", "max_abs_logit")
LEGACY_BATCH_SIZE = 64
Key = tuple[str, int]  # the hash of an image's file and its label


@dataclass(frozen=True, slots=True)
class Predictions:
    """One runner's answers, a row per image."""

    files: tuple[str, ...]
    sha256: tuple[str, ...]  # of each file
    labels: IntArray  # (n,)
    logits: FloatArray  # (n, num_classes)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def keys(self) -> list[Key]:
        """What identifies each image: the hash of its file and its label."""
        return list(zip(self.sha256, self.labels.tolist(), strict=True))

    def take(self, rows: list[int]) -> "Predictions":
        """Keep only these rows, in this order."""
        return Predictions(
            tuple(self.files[row] for row in rows),
            tuple(self.sha256[row] for row in rows),
            self.labels[rows],
            self.logits[rows],
        )

    @property
    def top5(self) -> IntArray:
        """Indices of the five best classes of each image, best first: (n, 5) or fewer."""
        return top_k_indices(self.logits, 5)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Number of images, of those wrong in top 1, and of those wrong in top 5."""
        right = self.top5 == self.labels[:, None]
        n = len(self)
        return n, n - int(right[:, 0].sum()), n - int(right.any(axis=1).sum())

    def errors(self) -> dict[str, float]:
        """Return `n` and the errors, in percent of exactly n images."""
        n, top1, top5 = self.counts
        return {"n": n, "top1_error": 100 * top1 / n, "top5_error": 100 * top5 / n}

    def legacy_errors(self, batch_size: int = LEGACY_BATCH_SIZE) -> dict[str, float]:
        """Average the errors (%) as the original did: over batches, a short last one in full.

        Its batches were in random order; these are in the folder's.
        """
        right = self.top5 == self.labels[:, None]
        starts = range(0, len(self), batch_size)
        batches = [right[start : start + batch_size] for start in starts]
        return {
            "legacy_top1_error": 100 - 100 * float(np.mean([b[:, 0].mean() for b in batches])),
            "legacy_top5_error": 100 - 100 * float(np.mean([b.any(1).mean() for b in batches])),
        }


def first_rows(keys: Iterable[Key]) -> list[int]:
    """Return the rows in which a key occurs for the first time; the others are copies."""
    first: dict[Key, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return list(first.values())


@dataclass(frozen=True)
class Ledger:
    """A model's answers in compact form, a row per image; `logits` only after a fresh run."""

    sha256: tuple[str, ...]  # of each image file
    labels: IntArray  # (n,)
    top5: IntArray  # (n, 5), best first; fewer columns if there are fewer classes
    top5_logits: FloatArray  # the same shape
    margins: FloatArray  # (n,): best logit minus second best
    max_abs_logit: float  # not a unit of differences: a masked class makes it as large as it likes
    logits: FloatArray | None = None  # (n, num_classes)

    @classmethod
    def from_predictions(cls, predictions: Predictions) -> Self:
        """Make the ledger of a model that has just been run."""
        top5 = predictions.top5
        top5_logits = np.take_along_axis(predictions.logits, top5, axis=1)
        return cls(
            sha256=predictions.sha256,
            labels=predictions.labels,
            top5=top5,
            top5_logits=top5_logits,
            margins=margins_of(top5_logits),
            max_abs_logit=float(np.abs(predictions.logits).max()),
            logits=predictions.logits,
        )

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def top1_right(self) -> BoolArray:
        """Whether the best class is the label: (n,)."""
        right: BoolArray = self.top5[:, 0] == self.labels
        return right

    @property
    def top5_right(self) -> BoolArray:
        """Whether the label is among the five best: (n,)."""
        right: BoolArray = (self.top5 == self.labels[:, None]).any(axis=1)
        return right

    @property
    def typical_margin(self) -> float:
        """The unit in which differences between logits are measured."""
        return typical_margin(self.margins)

    @property
    def keys(self) -> list[Key]:
        """What identifies each image: the hash of its file and its label."""
        return list(zip(self.sha256, self.labels.tolist(), strict=True))

    @cached_property
    def data_sha256(self) -> str:
        """Hash over images and labels, independent of their order and file names."""
        rows = sorted(f"{sha} {label}\n" for sha, label in self.keys)
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def take(self, rows: list[int]) -> Self:
        """Keep only these rows, in this order."""
        return type(self)(
            sha256=tuple(self.sha256[row] for row in rows),
            labels=self.labels[rows],
            top5=self.top5[rows],
            top5_logits=self.top5_logits[rows],
            margins=self.margins[rows],
            max_abs_logit=self.max_abs_logit,
            logits=None if self.logits is None else self.logits[rows],
        )

    def to_bytes(self) -> bytes:
        """Return the contents of a ledger file."""
        return bytes_from_arrays(
            sha256=np.array([list(bytes.fromhex(sha)) for sha in self.sha256], np.uint8),
            labels=self.labels,
            top5=self.top5.astype(np.int32),
            top5_logits=self.top5_logits,
            margins=self.margins,
            max_abs_logit=np.float64(self.max_abs_logit),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a ledger file; raises BundleError."""
        try:
            sha256, labels, top5, top5_logits, margins, largest = load_arrays(path, *_ARRAYS)
        except ValueError as error:
            raise BundleError(path, str(error), "answers of a model", "make it again") from error
        return cls(
            sha256=tuple(row.tobytes().hex() for row in sha256),
            labels=labels,
            top5=top5.astype(np.int64),
            top5_logits=top5_logits,
            margins=margins,
            max_abs_logit=float(largest),
        )
