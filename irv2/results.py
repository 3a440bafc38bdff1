"""Logits to answers: softmax and the best classes, the same with and without a server."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irv2.errors import ImageError
from irv2.types import FloatArray, IntArray

DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True)
class Score:
    """One class and its softmax probability, 0 to 1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image: scores, best first, or an error, never both.

    `model_id` is the model that answered; empty where none was asked.
    """

    scores: tuple[Score, ...] = ()
    error: ImageError | None = None
    model_id: str = ""


def top_k_scores(logits: FloatArray, classes: Sequence[str], top_k: int) -> tuple[Score, ...]:
    """The `top_k` (0 means 5) best classes of float logits (num_classes,).

    Ties go to the lower index, so that every artefact breaks them alike.
    """
    order = top_k_indices(logits[None], top_k or DEFAULT_TOP_K)[0]
    return ranked_scores(softmax(logits), order, classes)


def ranked_scores(
    probabilities: FloatArray, order: IntArray, classes: Sequence[str]
) -> tuple[Score, ...]:
    """The classes of `order`, best first, with their probabilities (num_classes,)."""
    ranked = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return tuple(Score(index, classes[index], probability) for index, probability in ranked)


def top_k_indices(logits: FloatArray, top_k: int) -> IntArray:
    """Indices of the `top_k` largest of each row of (N, num_classes), best first."""
    order: IntArray = np.argsort(-logits, axis=1, kind="stable")
    return order[:, :top_k]


def softmax(logits: FloatArray) -> FloatArray:
    """Softmax over the last axis, in float64 inside."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: FloatArray = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities
