"""Whether a class loses more than the whole may: in a long-tailed evaluation the whole hides it.

Every class gets exact limits of its own, at a confidence that is corrected for their number
(Bonferroni). Classes with too few images to show anything are taken together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from irv2.convert.gate.limits import lower_loss_points, smallest_failing_n, upper_loss_points
from irv2.convert.gate.reference import Reference
from irv2.manifest import ClassChange
from irv2.system.text import first_few, one_line
from irv2.types import BoolArray

NUM_WORST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassChanges:
    """The top-1 changes of the classes that have images."""

    each: list[ClassChange]
    fewest: int  # images that a class needs to show a loss above `tolerance_points`
    together: ClassChange | None  # those with fewer images than that
    tolerance_points: float

    @property
    def too_few(self) -> list[ClassChange]:
        """The classes that have too few images for a verdict of their own."""
        return [change for change in self.each if change.images < self.fewest]

    @property
    def worse(self) -> list[ClassChange]:
        """What is shown to lose more than the tolerance, worst first."""
        judged = [change for change in self.each if change.images >= self.fewest]
        judged += [self.together] if self.together else []
        found = [c for c in judged if c.lower_loss_points > self.tolerance_points]
        return sorted(found, key=lambda change: -change.lower_loss_points)

    @property
    def worst(self) -> list[ClassChange]:
        """A few of those that lose, for the bundle: the largest shown loss first."""
        losing = [change for change in self.each if change.lost > change.gained]
        return sorted(losing, key=lambda change: -change.lower_loss_points)[:NUM_WORST]

    def describe(self) -> list[str]:
        """What a report says of classes that are worse, or have too few images to tell."""
        texts = []
        if self.worse:
            named = first_few(list(map(describe, self.worse)), separator="; ")
            texts.append(f"significantly worse: {named}")
        if self.together:
            few = self.too_few
            named = first_few([f"{one_line(change.label)} ({change.images})" for change in few])
            texts.append(
                f"{len(few)} of {len(self.each)} classes have fewer than the {self.fewest} images "
                f"that can show a loss of their own: {named}; {describe(self.together)}"
            )
        return texts


def class_changes(
    reference: Reference,
    is_right: BoolArray,
    *,
    tolerance_points: float,
    confidence: float,
    classes: Sequence[str] = (),
) -> ClassChanges:
    """Count by class what the artefact, right where `is_right` (n,), lost and gained.

    Without `classes`, which names them, they are known by their indices.
    """
    indices, row_class = np.unique(reference.labels, return_inverse=True)
    corrected = 1 - (1 - confidence) / len(indices)
    was_right = reference.top1_right
    images, lost, gained = (
        np.bincount(row_class[rows], minlength=len(indices)).tolist()
        for rows in (slice(None), was_right & ~is_right, ~was_right & is_right)
    )
    each = [
        _change(classes[index] if classes else str(index), n, b, c, corrected)
        for index, n, b, c in zip(indices.tolist(), images, lost, gained, strict=True)
    ]
    fewest = smallest_failing_n(tolerance_points, corrected)
    few = [change for change in each if change.images < fewest]
    together = None
    if few:
        sums = (sum(c.images for c in few), sum(c.lost for c in few), sum(c.gained for c in few))
        label = f"{len(few)} small classes together" if len(few) > 1 else few[0].label
        together = _change(label, *sums, corrected)
    return ClassChanges(
        each=each, fewest=fewest, together=together, tolerance_points=tolerance_points
    )


def describe(change: ClassChange) -> str:
    """One class in words."""
    return (
        f"{one_line(change.label)}: {change.lost} lost, {change.gained} gained of "
        f"{change.images}, a loss of "
        f"{change.lower_loss_points:.2f} to {change.upper_loss_points:.2f} points"
    )


def _change(label: str, n: int, lost: int, gained: int, confidence: float) -> ClassChange:
    return ClassChange(
        label=label,
        images=n,
        lost=lost,
        gained=gained,
        lower_loss_points=lower_loss_points(lost, gained, n, confidence),
        upper_loss_points=upper_loss_points(lost, gained, n, confidence),
    )
