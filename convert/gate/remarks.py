"""What evaluation images can show, and what weakens them as evidence.

A checkpoint knows nothing of the files it saw, so DIR/val is compared with the DIR/train beside
it: by size first, then by hash. What was hashed is kept in the user's cache.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from irv2.convert.gate.limits import is_above_chance, lower_loss_points, upper_loss_points
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.tolerance import TOLERANCE_POINTS
from irv2.convert.gate.verdict import IDENTICAL_LOGITS
from irv2.data.dataset import splits_of, unread_split
from irv2.data.hashes import known_hashes, same_size
from irv2.errors import InputError
from irv2.manifest import Parity
from irv2.measures.agreement import smallest_passing_n
from irv2.system.text import first_few, one_line

logger = logging.getLogger(__name__)

# Of ImageNet's 1.3 million training files about this many share a size with one of 2000
# evaluation images; reading them takes a few minutes, once.
MAX_HASHED = 100_000
# No conversion makes a network better; a gain beyond this means that it is another network.
IMPLAUSIBLE_GAIN_POINTS = 5.0
MIN_LOGITS = 5  # that have to agree before two images are called near copies


def remarks_on(
    reference: Reference,
    classes: list[str],
    data: Path,
    confidence: float,
    *,
    files: Sequence[str] = (),
    num_copies: int = 0,
) -> list[str]:
    """What the images in `data`/val can show at best, and what weakens them as evidence.

    What weakens them is logged too. `files` are the images', in the order of `reference`;
    `num_copies` more were left out as copies of these.
    """
    names = list(files) or [sha256[:12] for sha256 in reference.sha256]
    remarks = [limits_remark(len(reference), confidence)]
    if len(classes) <= 10:
        remarks.append(
            f"With {len(classes)} classes top-5 is nearly empty as evidence: guessing is right "
            f"in {100 * min(1, 5 / len(classes)):.0f} % of cases."
        )
    weaknesses = (
        chance_remark(reference, len(classes), confidence),
        copies_remark(len(reference), num_copies),
        labels_remark(reference, names),
        near_copies_remark(reference, names),
        coverage_remark(reference, classes),
        leakage_remark(reference, data),
    )
    for weakness in filter(None, weaknesses):
        logger.warning("notice: %s", weakness)
        remarks.append(weakness)
    return remarks


def limits_remark(n: int, confidence: float) -> str:
    """The smallest loss that `n` images can show, and how many each default tolerance takes."""
    tolerances = list(TOLERANCE_POINTS.values())
    return (
        f"These {n} images can't show a loss below {upper_loss_points(0, 0, n, confidence):.2f} "
        f"points ({100 * confidence:g} %), even with none lost. To show "
        + " / ".join(map(str, tolerances))
        + " points takes at least "
        + " / ".join(str(smallest_passing_n(t, confidence)) for t in tolerances)
        + " images."
    )


def chance_remark(reference: Reference, num_classes: int, confidence: float) -> str:
    """A remark if the checkpoint may be guessing; empty otherwise."""
    n, num_right = len(reference), int(reference.top1_right.sum())
    if is_above_chance(num_right, n, num_classes, confidence):
        return ""
    return (
        f"The checkpoint is right on {num_right} of {n} images, which is not shown to be better "
        f"than chance ({100 / num_classes:.3g} %): agreeing with it says little."
    )


def copies_remark(n: int, num_copies: int) -> str:
    """A remark if copies were left out; empty otherwise."""
    if not num_copies:
        return ""
    return (
        f"{num_copies} of {n + num_copies} images are copies of others, byte by byte and under the "
        f"same label; they are left out, and {n} count."
    )


def labels_remark(reference: Reference, names: Sequence[str]) -> str:
    """A remark if the same bytes lie under several labels; empty otherwise."""
    rows_of: dict[str, list[int]] = {}
    for row, sha256 in enumerate(reference.sha256):
        rows_of.setdefault(sha256, []).append(row)
    groups = [rows for rows in rows_of.values() if len(rows) > 1]
    if not groups:
        return ""
    return (
        f"The same bytes lie under more than one label ({len(groups)} such): "
        f"{_named(groups, names)}. At most one of the labels is right."
    )


def near_copies_remark(reference: Reference, names: Sequence[str]) -> str:
    """A remark if images of one label get the same logits but for rounding; empty otherwise.

    They are the same picture in other bytes, for all that the checkpoint can see. With fewer than
    five classes logits agree by chance.
    """
    if reference.top5.shape[1] < MIN_LOGITS:
        return ""
    order = np.lexsort((*reference.top5_logits.T[::-1], reference.labels))
    labels, logits = reference.labels[order], reference.top5_logits[order]
    limit = IDENTICAL_LOGITS * reference.typical_margin
    is_near = (np.diff(labels) == 0) & (np.abs(np.diff(logits, axis=0)).max(axis=1) <= limit)
    pairs = [[int(order[i]), int(order[i + 1])] for i in np.flatnonzero(is_near)]
    if not pairs:
        return ""
    return (
        f"Near copies, of one class and with the same logits ({len(pairs)} of {len(reference)} "
        f"images): {_named(pairs, names)}. They count, but show less than as many different ones "
        "would."
    )


def _named(groups: list[list[int]], names: Sequence[str]) -> str:
    """The first groups, by the names of their images."""
    shown = [" = ".join(one_line(names[row]) for row in rows[:3]) for rows in groups]
    return first_few(shown, 3, separator="; ")


def gain_remark(file: str, parity: Parity) -> str:
    """A remark if an artefact is better than its checkpoint can be; empty otherwise."""
    lost, gained = parity.top1.lost, parity.top1.gained
    least = lower_loss_points(gained, lost, parity.n, parity.confidence)
    if least <= IMPLAUSIBLE_GAIN_POINTS:
        return ""
    return (
        f"{file} gains {gained} images and loses {lost}: more than {least:.2f} points better than "
        "its checkpoint, which no conversion explains. Is it of another checkpoint, or are the "
        "labels in another order?"
    )


def coverage_remark(reference: Reference, classes: list[str]) -> str:
    """A remark if classes of the network have no evaluation image; empty otherwise."""
    missing = sorted(set(range(len(classes))) - set(reference.labels.tolist()))
    if not missing:
        return ""
    named = first_few([one_line(classes[i]) for i in missing])
    return (
        f"{len(missing)} of {len(classes)} classes have no evaluation image ({named}): "
        "nothing is known of them."
    )


def leakage_remark(reference: Reference, data: Path) -> str:
    """A remark if evaluation images lie in `data`/train too; empty otherwise."""
    if "train" not in splits_of(data):
        return ""
    try:
        candidates = same_size(unread_split(data, "train"), unread_split(data, "val"))
        looked_at = candidates.subset(range(min(len(candidates), MAX_HASHED)))
        trained_on = known_hashes(looked_at)
    except (InputError, OSError) as error:  # the verdict stands without it
        return f"Evaluation images were not looked for in train/ ({error})."
    is_partial = len(looked_at) < len(candidates)
    where = f" ({len(looked_at)} of {len(candidates)} files looked at)" if is_partial else ""
    num = sum(sha256 in trained_on for sha256 in reference.sha256)
    if not num:
        return f"No evaluation image was found in train/{where}." if is_partial else ""
    return (
        f"{num} of {len(reference)} evaluation images are in train/ too, byte by byte{where}: "
        "errors on them say little about new images."
    )
