"""Logits to answers: softmax and the best classes, the same with and without a server."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irv2.errors import ImageError
from irv2.types import FloatArray

DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True)
class Score:
    """One class and its softmax probability, 0 to 1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image: scores, best first, or an error, never both."""

    scores: tuple[Score, ...] = ()
    error: ImageError | None = None


def top_k_scores(logits: FloatArray, classes: Sequence[str], top_k: int) -> tuple[Score, ...]:
    """The `top_k` (0 means 5) best classes of float logits (num_classes,).

    Ties go to the lower index, so that every artefact breaks them alike.
    """
    probabilities = softmax(logits)
    order = top_k_indices(logits[None], top_k or DEFAULT_TOP_K)[0]
    return tuple(Score(int(i), classes[i], float(probabilities[i])) for i in order)


def top_k_indices(logits: FloatArray, top_k: int) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Indices of the `top_k` largest of each row of (N, num_classes), best first."""
    order: np.ndarray[tuple[int, int], np.dtype[np.intp]] = np.argsort(
        -logits, axis=1, kind="stable"
    )
    return order[:, :top_k]


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis, in float64 inside."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: FloatArray = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities
