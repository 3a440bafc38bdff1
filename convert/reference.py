"""What the checkpoint answered on the evaluation images, kept so that it need not be run again.

`reference.npz` lies in the bundle: with it and the images, `irv2 verify` judges an artefact on
another machine, without the checkpoint and without torch.
"""

import hashlib
import io
import zipfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from irv2.dataset import ImageFolder
from irv2.errors import BundleError, DataError
from irv2.evaluate import Ledger
from irv2.progress import progress
from irv2.types import FloatArray, IntArray

REFERENCE = "reference.npz"
_ARRAYS = ("sha256", "labels", "top5", "top5_logits", "margins", "max_abs_logit")


@dataclass(frozen=True)
class Reference:
    """One row per image. `logits` is there only where the checkpoint has just been run."""

    sha256: tuple[str, ...]  # of each image file
    labels: IntArray  # (n,)
    top5: IntArray  # (n, 5), best first; fewer columns where there are fewer classes
    top5_logits: FloatArray  # the same shape
    margins: FloatArray  # (n,): best logit minus second best
    max_abs_logit: float
    logits: FloatArray | None = None  # (n, num_classes)

    @classmethod
    def from_ledger(cls, ledger: Ledger) -> Self:
        """The checkpoint's own answers."""
        top5 = ledger.top5
        top5_logits = np.take_along_axis(ledger.logits, top5, axis=1)
        # With a single class there is no second best.
        second = top5_logits[:, min(1, top5.shape[1] - 1)]
        return cls(
            sha256=ledger.sha256, labels=ledger.labels, top5=top5, top5_logits=top5_logits,
            margins=top5_logits[:, 0] - second, max_abs_logit=float(np.abs(ledger.logits).max()),
            logits=ledger.logits,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def top1_right(self) -> NDArray[np.bool_]:
        """Whether the checkpoint's best class is the label: (n,)."""
        right: NDArray[np.bool_] = self.top5[:, 0] == self.labels
        return right

    @property
    def top5_right(self) -> NDArray[np.bool_]:
        """Whether the label is among the checkpoint's five best: (n,)."""
        right: NDArray[np.bool_] = (self.top5 == self.labels[:, None]).any(axis=1)
        return right

    @cached_property
    def data_sha256(self) -> str:
        """Identity of images and labels, whatever their order and file names."""
        rows = sorted(f"{sha} {label}\n" for sha, label in self._keys())
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def max_abs_difference(self, logits: FloatArray) -> float:
        """Largest difference of the finite ones of `logits` (n, num_classes) to ours.

        Over all classes where our logits are at hand, else over our five best.
        """
        if self.logits is not None:
            difference = np.abs(logits - self.logits)
        else:
            difference = np.abs(np.take_along_axis(logits, self.top5, axis=1) - self.top5_logits)
        return float(difference.max(where=np.isfinite(difference), initial=0.0))

    def find_images(self, folder: ImageFolder) -> tuple[ImageFolder, Self]:
        """The files of `folder` that these answers are about, and the answers in their order.

        Files are matched by content and class, so they may have moved, and others beside them do
        no harm. Raises DataError where one is missing.
        """
        waiting = defaultdict(list)
        for row, key in enumerate(self._keys()):
            waiting[key].append(row)
        files, rows = [], []
        for i, sha256 in enumerate(_hash_files(folder)):
            candidates = waiting[sha256, int(folder.labels[i])]
            if candidates:
                files.append(i)
                rows.append(candidates.pop())
        if len(rows) < len(self):
            raise DataError(
                folder.root,
                f"{len(self) - len(rows)} of the {len(self)} images that the bundle was judged on "
                "are not in it", "the images of the export, unchanged",
                "pass their folder with --data, or export again on these",
            )  # fmt: skip
        return folder.subset(files), self._take(rows)

    def to_bytes(self) -> bytes:
        """The contents of reference.npz."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, allow_pickle=False,
            sha256=np.array([list(bytes.fromhex(sha)) for sha in self.sha256], np.uint8),
            labels=self.labels, top5=self.top5.astype(np.int32), top5_logits=self.top5_logits,
            margins=self.margins, max_abs_logit=np.float64(self.max_abs_logit),
        )  # fmt: skip
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read reference.npz; raises BundleError."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                sha256, labels, top5, top5_logits, margins, largest = (arrays[n] for n in _ARRAYS)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise BundleError(path, str(error), "answers of the checkpoint", "export again") from (
                error
            )
        return cls(
            sha256=tuple(row.tobytes().hex() for row in sha256), labels=labels,
            top5=top5.astype(np.int64), top5_logits=top5_logits, margins=margins,
            max_abs_logit=float(largest),
        )  # fmt: skip

    def _keys(self) -> list[tuple[str, int]]:
        return list(zip(self.sha256, self.labels.tolist(), strict=True))

    def _take(self, rows: list[int]) -> Self:
        return type(self)(
            sha256=tuple(self.sha256[row] for row in rows), labels=self.labels[rows],
            top5=self.top5[rows], top5_logits=self.top5_logits[rows], margins=self.margins[rows],
            max_abs_logit=self.max_abs_logit,
            logits=None if self.logits is None else self.logits[rows],
        )  # fmt: skip


def _hash_files(folder: ImageFolder) -> list[str]:
    def hash_image(i: int) -> str:
        return hashlib.sha256(folder.read(i)).hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing and reading release the interpreter lock
        hashes = pool.map(hash_image, range(len(folder)))
        return list(progress(hashes, f"find images in {folder.root}", len(folder), "images"))
