"""Choosing the images on which a server will try its engine (irv2/self_test.py)."""

from collections.abc import Sequence

import numpy as np

from irv2.data.dataset import ImageFolder
from irv2.images.preprocess import Preprocess, prepare
from irv2.ledger import Ledger, Predictions
from irv2.self_test import NUM_IMAGES, SelfTest


def choose_self_test(
    predictions: Sequence[Predictions], images: ImageFolder, config: Preprocess
) -> SelfTest | None:
    """The clearest of the images on which all agree; None where they agree on none.

    The checkpoint's come first. Clear means a large margin, so that rounding on another
    machine changes no answer; as many classes as possible, so that an engine that always answers
    the same is found.
    """
    reference = Ledger.from_predictions(predictions[0])
    top1, margins = reference.top5[:, 0], reference.margins
    agreed = np.flatnonzero(np.all([each.top5[:, 0] == top1 for each in predictions], axis=0))
    clearest = agreed[np.argsort(-margins[agreed], kind="stable")]
    _, first_of_class = np.unique(top1[clearest], return_index=True)
    is_repeated = np.ones(len(clearest), bool)
    is_repeated[first_of_class] = False
    chosen = clearest[np.argsort(is_repeated, kind="stable")][:NUM_IMAGES]
    if not len(chosen):
        return None
    shown = images.named([predictions[0].files[row] for row in chosen])
    pixels = [prepare(shown.read(i), config) for i in range(len(shown))]
    return SelfTest(np.stack(pixels), top1[chosen], margins[chosen])
