"""The checkpoint's answers on the evaluation images, with which the gate compares an artefact's.

`reference.npz` lies in the bundle: with it and the images, `irv2 verify` judges an artefact on
another machine, without the checkpoint and without torch.
"""

from typing import Self

import numpy as np

from irv2.data.dataset import ImageFolder
from irv2.data.hashes import hash_files
from irv2.errors import DataError
from irv2.ledger import Key, Ledger, first_rows
from irv2.results import clipped_gaps
from irv2.types import FloatArray


class Reference(Ledger):
    """The answers of the checkpoint, in torch and float32."""

    def max_abs_difference(self, logits: FloatArray) -> float:
        """Return the largest difference between our logits and `logits` (n, num_classes).

        Only finite ones count. All classes are compared if our logits are at hand, else our five
        best.
        """
        if self.logits is not None:
            difference = np.abs(logits - self.logits)
        else:
            difference = np.abs(np.take_along_axis(logits, self.top5, axis=1) - self.top5_logits)
        return float(difference.max(where=np.isfinite(difference), initial=0.0))

    def leading_difference(self, logits: FloatArray) -> float:
        """Return how much the gaps between an image's leading logits differ, at most.

        A constant added to all logits of an image, and whatever becomes of classes far behind its
        best one, change no answer and do not count. Finite `logits` (n, num_classes) are compared
        in all classes if our logits are at hand, else in our five best.
        """
        unit, best = self.typical_margin, self.top5[:, 0]
        if self.logits is not None:
            ours, theirs = self.logits, logits
        else:
            ours, theirs = self.top5_logits, np.take_along_axis(logits, self.top5, axis=1)
            best = np.zeros(len(self), np.int64)
        difference = clipped_gaps(theirs, best, unit) - clipped_gaps(ours, best, unit)
        return float(np.abs(difference).max())

    def find_images(self, folder: ImageFolder) -> tuple[ImageFolder, Self, int]:
        """Return the files of `folder` that these answers are about, and the answers in that order.

        The number says how many copies of them were passed over. Files are matched by content and
        class, so they may have moved, and other files do no harm. Raises DataError if one is
        missing.
        """
        keys = self.keys
        row_of = {keys[row]: row for row in first_rows(keys)}
        found: dict[Key, int] = {}
        num_copies = 0
        for i, key in enumerate(zip(hash_files(folder), folder.labels.tolist(), strict=True)):
            num_copies += key in found
            if key in row_of:
                found.setdefault(key, i)
        if missing := len(row_of) - len(found):
            raise DataError(
                folder.place,
                f"{missing} of the {len(row_of)} images that the bundle was judged on are not in "
                "it",
                "the images of the export, unchanged",
                "pass their folder with --data, or export again on these",
            )
        rows = [row_of[key] for key in found]
        return folder.subset(list(found.values())), self.take(rows), num_copies
