"""From logits to answers: softmax and the best classes, the same with and without a server."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from irv2.errors import ImageError, UsageError
from irv2.types import FloatArray, IntArray

DEFAULT_TOP_K = 5
MAX_TOP_K = 2**32 - 1  # what a request can carry
# How far behind the best class a logit is still looked at, in typical margins.
REACH = 10


@dataclass(frozen=True, slots=True)
class Score:
    """One class and its softmax probability, 0 to 1."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one image: scores, best first, or an error, never both.

    `model_id` is the id of the model that answered; empty if none was asked. `orientation` is the
    EXIF orientation, 2 to 8, that the picture carries and the model did not apply; else 0.
    """

    scores: tuple[Score, ...] = ()
    error: ImageError | None = None
    model_id: str = ""
    orientation: int = 0


def check_top_k(top_k: int) -> None:
    """Raise UsageError unless `top_k` is a number of classes that can be asked for."""
    if not (isinstance(top_k, Integral) and 0 <= top_k <= MAX_TOP_K):
        expected = f"a whole number from 0, which means {DEFAULT_TOP_K}, to {MAX_TOP_K}"
        raise UsageError("top_k", repr(top_k), expected)


def top_k_scores(logits: FloatArray, classes: Sequence[str], top_k: int) -> tuple[Score, ...]:
    """Return the `top_k` (0 means 5) best classes of float logits (num_classes,).

    Ties go to the lower index, so that all artefacts break them alike.
    """
    order = top_k_indices(logits[None], top_k or DEFAULT_TOP_K)[0]
    return ranked_scores(softmax(logits), order, classes)


def ranked_scores(
    probabilities: FloatArray, order: IntArray, classes: Sequence[str]
) -> tuple[Score, ...]:
    """Pair the class indices `order` (k,), best first, with `probabilities` (num_classes,)."""
    ranked = zip(order.tolist(), probabilities[order].tolist(), strict=True)
    return tuple(Score(index, classes[index], probability) for index, probability in ranked)


def top_k_indices(logits: FloatArray, top_k: int) -> IntArray:
    """Return the indices of the `top_k` largest logits (N, num_classes) in each row, best first."""
    order: IntArray = np.argsort(-logits, axis=1, kind="stable")
    return order[:, :top_k]


def softmax(logits: FloatArray) -> FloatArray:
    """Return the softmax of (..., num_classes) over the last axis: float32, computed in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: FloatArray = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
    return probabilities


def margins_of(logits: FloatArray) -> FloatArray:
    """Return the best of logits (N, num_classes) minus the second best: (N,); 0 for one class."""
    top2 = np.sort(logits, axis=1)[:, -2:]
    return top2[:, -1] - top2[:, 0]


def typical_margin(margins: FloatArray) -> float:
    """Return the median of the finite margins (n,), or 0: the unit of differences between logits.

    The largest logit is no unit: one class that is masked by -1e9 would make every difference
    small. A margin is the same wherever such a class or a constant shifts the logits, and grows
    with their scale.
    """
    finite = margins[np.isfinite(margins)]
    return float(np.median(finite)) if len(finite) else 0.0


def clipped_gaps(logits: FloatArray, best: IntArray, unit: float) -> FloatArray:
    """Return how far each logit (n, k) is behind that of `best` (n,): (n, k).

    What is beyond `REACH` units decides nothing, however far it is, and counts as that far.
    Where the unit is 0, as with ties throughout, nothing is beyond it.
    """
    leading = np.take_along_axis(logits, best[:, None], axis=1)
    reach = REACH * unit or math.inf
    gaps: FloatArray = np.clip(leading - logits, -reach, reach)
    return gaps
