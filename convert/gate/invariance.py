"""Batch invariance: does an image's answer depend on the batch that it is in?

A server batches whatever arrives together. An artefact is certified for the batch sizes that were
tried here, up to its largest: every image alone, before and after the others; repeated to fill a
batch; and among the others. Engines keep state between batches, so sizes ascend, then descend.
"""

import math
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
from irv2.results import clipped_gaps, softmax
from irv2.runners.base import CPU_MAX_BATCH, Runner, usual_sizes
from irv2.system.progress import Progress
from irv2.types import FloatArray, UInt8Array

# A batch of 64 holds each of them eight times. All sizes up to 64 together run 806 images and these
# twice alone: 5 % of the gate's time with 10,000 images.
NUM_IMAGES = 8
# Two classes whose logits were this close alone are a tie, which rounding may turn. The unit is the
# typical margin: probabilities come as close as one likes in a network that is sure of nothing.
TIE = 1e-3
# Logits that move by more than this against the best one are no rounding, whatever the answer is.
MAX_SHIFT = 0.5


def batch_sizes(max_batch: int, profiles: Iterable[Profile] = ()) -> list[int]:
    """Sizes that stand for all up to `max_batch`, ascending.

    Every one that a server makes on a CPU, each power of two above with both its neighbours and an
    odd size on the way to the next; of an engine's profiles the edges and what each is tuned for.
    """
    powers = usual_sizes(max_batch)
    around = [
        size for power in powers for size in (power - 1, power, power + 1, 3 * power // 2 + 1)
    ]
    wanted = {*range(1, CPU_MAX_BATCH + 1), *around}
    return sorted(
        {*(size for size in wanted if 1 <= size <= max_batch), *chain.from_iterable(profiles)}
    )


def load_probes(images: ImageFolder, predictions: Predictions, config: Preprocess) -> UInt8Array:
    """Load a few of the images that `predictions` are about, of as many classes as possible.

    Returns uint8 (P, S, S, 3).
    """
    few = images.select(predictions.files).first(NUM_IMAGES)
    return np.stack([prepare(few.read(i), config).image_hwc for i in range(len(few))])


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
    batches = _batches(len(probes), sizes)
    changed = dict.fromkeys(sizes, 0)
    largest = 0.0
    num_answers = sum(map(len, batches))
    # Logits that are not finite give probabilities that are none, and count as changed.
    with (
        Progress(f"batches ({runner.backend})", num_answers) as bar,
        np.errstate(invalid="ignore"),
    ):
        answers = runner.map(probes[rows] for rows in batches)
        for rows, logits in zip(batches, answers, strict=True):
            changed[len(rows)] += _num_changed(alone[rows], logits, unit)
            largest = max(largest, _max_probability_diff(alone[rows], logits))
            bar.advance(len(rows))
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
    first = found.first_changed_batch
    where = "even alone, after other batches" if first == 1 else f"from batches of {first} on"
    line = (
        f"{artifact.precision} failed: {found.changed} of {found.num_answers} answers change with "
        f"the batch they are in, {where} "
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


def _batches(num_images: int, sizes: list[int]) -> list[list[int]]:
    """Batches of indices: mixed ones of ascending `sizes`, each image alone, then descending ones,
    each of a single image, repeated.
    """
    mixed = [[(turn + i) % num_images for i in range(size)] for turn, size in enumerate(sizes)]
    alone = [[i] for i in range(num_images)]
    repeated = [[turn % num_images] * size for turn, size in enumerate(reversed(sizes))]
    return [*mixed, *alone, *repeated]


def _num_changed(alone: FloatArray, batched: FloatArray, unit: float) -> int:
    """Rows of (N, num_classes) logits with another best class, ties apart, or that are not finite,
    or that moved by more than rounding.
    """
    rows = np.arange(len(alone))
    best, now = alone.argmax(1), batched.argmax(1)
    is_tie = alone[rows, best] - alone[rows, now] <= TIE * unit
    is_finite = np.isfinite(batched).all(1)
    shift = np.abs(clipped_gaps(batched, best, unit) - clipped_gaps(alone, best, unit)).max(1)
    is_near = shift <= (MAX_SHIFT * unit or math.inf)  # without a margin there is no unit
    return int((~(is_tie & is_finite & is_near)).sum())


def _max_probability_diff(alone: FloatArray, batched: FloatArray) -> float:
    """The largest difference of probabilities; 1, the most possible, if one is not finite."""
    difference = np.abs(softmax(alone) - softmax(batched))
    return float(np.nan_to_num(difference, nan=1.0).max())
