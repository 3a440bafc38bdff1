"""Which blocks stay float32 if int8 alone loses too much: a search on the calibration images.

Blocks are ranked by what each does to the logits when it alone is quantised; then the fewest of
them, worst first, stay in float32 with which both placements lose little enough. The gate
judges only what came out, on other images.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from irv2.block_names import block_of
from irv2.convert.onnx.calibrate import Calibration
from irv2.convert.onnx.int8 import Target, quantize
from irv2.convert.onnx.trial import answers
from irv2.results import clipped_gaps, margins_of, typical_margin
from irv2.system.progress import progress
from irv2.types import FloatArray, UInt8Array

logger = logging.getLogger(__name__)

# A network is surer of its training images than of others, so that fewer of them change.
SHARE_OF_TOLERANCE = 0.5
RANKING_IMAGES = 32


@dataclass(frozen=True, slots=True)
class _Trial:
    """How one quantised model answered the calibration images."""

    target: Target
    lost: int  # right in float32, wrong now; where there are no labels, every change counts
    gained: int
    n: int

    @property
    def loss_points(self) -> float:
        return 100 * (self.lost - self.gained) / self.n

    def __str__(self) -> str:
        return (
            f"int8-{self.target}: {self.lost} lost, {self.gained} gained of {self.n} calibration "
            "images"
        )


def sensitive_blocks(
    model: onnx.ModelProto,
    calibration: Calibration,
    images: UInt8Array,
    tolerance_points: float,
    cpu_logits: FloatArray | None = None,
) -> dict[str, list[str]]:
    """Find the blocks to leave in float32: name -> nodes; empty if int8 alone is good enough.

    They are the same for both placements, whose operators are fused and rounded differently.
    `images` are the calibration's, `cpu_logits` those of the CPU's placement with every block in 8
    bits, if they are known.
    """
    limit = SHARE_OF_TOLERANCE * tolerance_points

    def answers_of(in_float32: Sequence[str], target: Target) -> FloatArray:
        names = [name for block in in_float32 for name in blocks[block]]
        return answers(quantize(model, calibration.ranges, target, names), images)

    def attempt(in_float32: Sequence[str], cpu_logits: FloatArray | None = None) -> _Trial:
        """The worse placement; TensorRT's, twice as slow here, is tried only if the CPU's does."""
        if cpu_logits is None:
            cpu_logits = answers_of(in_float32, "cpu")
        trial = _compare(cpu_logits, "cpu", calibration)
        if trial.loss_points > limit:
            return trial
        other = _compare(answers_of(in_float32, "trt"), "trt", calibration)
        return max(trial, other, key=lambda found: found.loss_points)

    blocks = blocks_of(model.graph)
    whole = attempt([], cpu_logits)
    if whole.loss_points <= limit:
        logger.info("int8: at worst %s, with every block in 8 bits", whole)
        return {}
    logger.warning("%s, more than %g points; looking for the blocks at fault", whole, limit)
    harm = _rank(model, calibration, blocks, images, whole.target)
    worst_first = sorted(harm, key=harm.__getitem__, reverse=True)
    in_float32, best = _fewest(worst_first, attempt, limit)
    logger.warning(
        "int8: keeps %s in float32 (relative error of the logits if quantised alone); at worst %s",
        ", ".join(f"{block} ({harm[block]:.2g})" for block in in_float32),
        best,
    )
    return {block: blocks[block] for block in in_float32}


def blocks_of(graph: onnx.GraphProto) -> dict[str, list[str]]:
    """Block -> names of its nodes; what has no weights belongs to the block before it."""
    blocks: dict[str, list[str]] = {}
    current = None
    for node in graph.node:
        current = next(filter(None, map(block_of, node.input)), current)
        if current is not None:
            blocks.setdefault(current, []).append(node.name)
    return blocks


def _fewest(
    worst_first: list[str], attempt: Callable[[Sequence[str]], _Trial], limit: float
) -> tuple[list[str], _Trial]:
    """The fewest blocks to leave in float32, by bisection; all but one if no number suffices."""
    trials: dict[int, _Trial] = {}

    def is_enough(num: int) -> bool:
        trials[num] = attempt(worst_first[:num])
        logger.info("%s, with %d blocks in float32", trials[num], num)
        return trials[num].loss_points <= limit

    most = len(worst_first) - 1
    num = 1 + bisect_left(range(1, most), True, key=is_enough)
    return worst_first[:num], trials.get(num) or attempt(worst_first[:num])


def _rank(
    model: onnx.ModelProto,
    calibration: Calibration,
    blocks: dict[str, list[str]],
    images: UInt8Array,
    target: Target,
) -> dict[str, float]:
    """Block -> relative error of the gaps between logits with only that block in 8 bits."""
    few = slice(None, None, -(-len(images) // RANKING_IMAGES))  # of all classes: they are sorted
    images, expected = images[few], calibration.logits[few]
    best = expected.argmax(axis=1)
    unit = typical_margin(margins_of(expected))
    gaps = clipped_gaps(expected, best, unit)
    harm = {}
    for block in progress(blocks, "rank blocks", len(blocks), "blocks"):
        others = [name for other, names in blocks.items() if other != block for name in names]
        logits = answers(quantize(model, calibration.ranges, target, others), images)
        moved = clipped_gaps(logits, best, unit) - gaps
        harm[block] = float(np.linalg.norm(moved) / np.linalg.norm(gaps))
    return harm


def _compare(logits: FloatArray, target: Target, calibration: Calibration) -> _Trial:
    before, now = calibration.logits.argmax(axis=1), logits.argmax(axis=1)
    truth = np.where(calibration.labels >= 0, calibration.labels, before)
    lost = int(((before == truth) & (now != truth)).sum())
    gained = int(((before != truth) & (now == truth)).sum())
    return _Trial(target, lost, gained, len(truth))
