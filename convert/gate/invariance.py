"""Batch invariance: does an image's answer depend on the batch that it is in?

A server batches whatever arrives together. An artefact is certified for the batch sizes that were
tried here, up to its largest: every image alone, repeated to fill a batch, and among the others.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import msgspec
import numpy as np

from irv2.convert.engine.options import Profile
from irv2.convert.gate.verdict import Judgement
from irv2.data.dataset import ImageFolder
from irv2.images.preprocess import Preprocess, prepare
from irv2.ledger import Predictions
from irv2.manifest import Artifact, Invariance
from irv2.results import softmax
from irv2.runners.base import Runner, usual_sizes
from irv2.system.progress import Progress
from irv2.types import FloatArray, UInt8Array

# A batch of 64 holds each of them eight times. All sizes up to 64 together run 252 images
# and these alone: about 20 s for the full network on two cores, whatever the size of the data.
NUM_IMAGES = 8
# Two classes whose logits were this close alone are a tie, which rounding may turn. The unit is the
# typical margin: probabilities come as close as one likes in a network that is sure of nothing.
TIE = 1e-3


def batch_sizes(max_batch: int, profiles: Iterable[Profile] = ()) -> list[int]:
    """1, 2, 4, ... and `max_batch`; of an engine's profiles also both edges and what each is
    tuned for.
    """
    return sorted({*usual_sizes(max_batch), *chain.from_iterable(profiles)})


def load_probes(images: ImageFolder, predictions: Predictions, config: Preprocess) -> UInt8Array:
    """Load a few of the images that `predictions` are about, of as many classes as possible.

    Returns uint8 (P, S, S, 3).
    """
    few = images.select(predictions.files).first(NUM_IMAGES)
    return np.stack([prepare(few.read(i), config) for i in range(len(few))])


def check(
    runner: Runner,
    probes: UInt8Array,
    max_batch: int,
    profiles: Iterable[Profile] = (),
    unit: float = 1.0,
) -> Invariance:
    """Run uint8 `probes` (P, S, S, 3) in batches of all the sizes in `batch_sizes`.

    `unit` is the typical margin of the runner's logits.
    """
    sizes = batch_sizes(max_batch, profiles)
    alone = np.concatenate([runner.run(probe[None]) for probe in probes])
    changed: dict[int, int] = {}
    largest, num_answers = 0.0, 0
    # Logits that are not finite give probabilities that are none, and count as changed.
    with (
        Progress(f"batches ({runner.backend})", 2 * sum(sizes)) as bar,
        np.errstate(invalid="ignore"),
    ):
        for i, size in enumerate(sizes):
            for rows in _batches(len(probes), size, i):
                logits = runner.run(probes[rows])
                changed[size] = changed.get(size, 0) + _num_changed(alone[rows], logits, TIE * unit)
                largest = max(largest, _max_probability_diff(alone[rows], logits))
                num_answers += size
                bar.advance(size)
    return Invariance(
        batch_sizes=sizes,
        num_images=len(probes),
        num_answers=num_answers,
        changed=sum(changed.values()),
        first_changed_batch=min((size for size in sizes if changed[size]), default=None),
        max_probability_diff=largest,
        ran_on=runner.backend,
    )


def with_invariance(judgement: Judgement, artifact: Artifact, found: Invariance) -> Judgement:
    """The judgement with this evidence: an answer that depends on its batch fails the artefact."""
    judgement = replace(judgement, invariance=found)
    if not found.changed or judgement.parity.verdict == "failed":
        return judgement  # the line says what failed first
    line = (
        f"{artifact.precision} failed: {found.changed} of {found.num_answers} answers change with "
        f"the batch they are in, from batches of {found.first_changed_batch} on "
        f"(by up to {found.max_probability_diff:.2g} in probability)"
    )
    parity = msgspec.structs.replace(judgement.parity, verdict="failed")
    return replace(judgement, parity=parity, line=line)


def describe(found: Invariance) -> str:
    """One line for the report."""
    sizes = ", ".join(map(str, found.batch_sizes))
    what = f"{found.num_images} images alone, repeated and mixed in batches of {sizes}"
    if found.changed:
        return f"{what}: {found.changed} of {found.num_answers} answers change"
    return f"{what}: the same answers, probabilities off by {found.max_probability_diff:.1e}"


def _batches(num_images: int, size: int, turn: int) -> list[list[int]]:
    """One image `size` times, a different one at each turn; and all of them, repeated in order."""
    return [[turn % num_images] * size, [(turn + i) % num_images for i in range(size)]]


def _num_changed(alone: FloatArray, batched: FloatArray, tie: float) -> int:
    """Rows of (N, num_classes) logits with another best class, ties apart; NaN is a change."""
    rows = np.arange(len(alone))
    best, now = alone.argmax(1), batched.argmax(1)
    is_tie = alone[rows, best] - alone[rows, now] <= tie
    is_finite = np.isfinite(batched).all(1)
    return int((~(is_tie & is_finite)).sum())


def _max_probability_diff(alone: FloatArray, batched: FloatArray) -> float:
    """The largest difference of probabilities; 1, the most possible, if one is not finite."""
    difference = np.abs(softmax(alone) - softmax(batched))
    return float(np.nan_to_num(difference, nan=1.0).max())
