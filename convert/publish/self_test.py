"""Choosing the images on which a server will try its engine (irv2/self_test.py)."""

from collections.abc import Sequence

import numpy as np

from irv2.bundle import prepare
from irv2.data.dataset import ImageFolder
from irv2.evaluate import Ledger
from irv2.images.preprocess import Preprocess
from irv2.ledger import Answers
from irv2.self_test import NUM_IMAGES, SelfTest


def choose_self_test(
    ledgers: Sequence[Ledger], images: ImageFolder, config: Preprocess
) -> SelfTest | None:  # fmt: skip
    """The clearest of the images on which all agree; None where they agree on none.

    The checkpoint's ledger comes first. Clear means a large margin, so that rounding on another
    machine changes no answer; as many classes as possible, so that an engine that always answers
    the same is found.
    """
    answers = Answers.from_ledger(ledgers[0])
    top1, margins = answers.top5[:, 0], answers.margins
    agreed = np.flatnonzero(np.all([ledger.top5[:, 0] == top1 for ledger in ledgers], axis=0))
    clearest = agreed[np.argsort(-margins[agreed], kind="stable")]
    _, first_of_class = np.unique(top1[clearest], return_index=True)
    is_repeated = np.ones(len(clearest), bool)
    is_repeated[first_of_class] = False
    chosen = clearest[np.argsort(is_repeated, kind="stable")][:NUM_IMAGES]
    if not len(chosen):
        return None
    shown = images.named([ledgers[0].files[row] for row in chosen])
    pixels = [prepare(shown.read(i), config) for i in range(len(shown))]
    return SelfTest(np.stack(pixels), top1[chosen], margins[chosen])
