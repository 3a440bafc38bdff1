"""Classify an image folder through one or several runners: exact counts, one row per image.

Used by `irv2 eval`, by the trainer after every epoch and by the parity gate, which judges all
artefacts in one pass over the images.
"""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irv2.answers import Answers
from irv2.bundle import Bundle, write_atomically
from irv2.dataset import BadImages, ImageFolder, open_split
from irv2.decode import ImageLimits, read_encoded
from irv2.errors import DataError, ImageError
from irv2.preprocess import Preprocess, preprocess
from irv2.progress import Progress
from irv2.results import top_k_indices
from irv2.runners.base import Runner
from irv2.samples import resolve_data
from irv2.types import FloatArray, IntArray, UInt8Array

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
# Files on one's own disk are trusted further than what clients send.
FILE_LIMITS = ImageLimits(max_bytes=2**28, max_pixels=180_000_000)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What one runner answered, image by image."""

    files: tuple[str, ...]
    sha256: tuple[str, ...]  # of each file
    labels: IntArray  # (n,)
    logits: FloatArray  # (n, num_classes)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def top5(self) -> IntArray:
        """Indices of the five best classes of each image, best first: (n, 5) or fewer."""
        return top_k_indices(self.logits, 5)

    def errors(self) -> dict[str, float]:
        """`n`, and the errors in percent of exactly n images."""
        right = self.top5 == self.labels[:, None]
        n = len(self)
        return {
            "n": n,
            "top1_error": 100 * (n - int(right[:, 0].sum())) / n,
            "top5_error": 100 * (n - int(right.any(axis=1).sum())) / n,
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """Preprocessed images: uint8 (N, S, S, 3), with where they came from."""

    images: UInt8Array
    labels: IntArray
    files: list[str]
    sha256: list[str]


def classify_folder(
    runners: Sequence[Runner], folder: ImageFolder, config: Preprocess, *,
    bad_images: BadImages = "error", title: str = "evaluate",
) -> list[Ledger]:  # fmt: skip
    """One ledger per runner, all from one pass over the images.

    Raises DataError where no image is left, ImageError for a bad one unless `bad_images` is skip.
    """
    batch_size = min([BATCH_SIZE, *(runner.max_batch for runner in runners)])
    logits: list[list[FloatArray]] = [[] for _ in runners]
    files: list[str] = []
    sha256: list[str] = []
    labels: list[IntArray] = []
    with Progress(title, len(folder), "images") as bar:
        for batch in load_batches(folder, config, batch_size, bad_images):
            for runner, rows in zip(runners, logits, strict=True):
                rows.append(runner.run(batch.images))
            files += batch.files
            sha256 += batch.sha256
            labels.append(batch.labels)
            bar.advance(len(batch.files))
    if not files:
        raise DataError(folder.root, "no image could be read", "at least one")
    all_labels = np.concatenate(labels)
    return [
        Ledger(tuple(files), tuple(sha256), all_labels, np.concatenate(rows)) for rows in logits
    ]


def load_batches(
    folder: ImageFolder, config: Preprocess, batch_size: int, bad_images: BadImages = "error"
) -> Iterator[Batch]:  # fmt: skip
    """Decode in threads, ahead of the consumer by two batches."""

    def load(i: int) -> tuple[UInt8Array, str]:
        encoded = read_encoded(folder.path(i))
        try:
            image = preprocess(encoded, config, FILE_LIMITS)
        except ImageError as error:
            raise error.named(folder.path(i)) from error
        return image, hashlib.sha256(encoded).hexdigest()

    starts = range(0, len(folder), batch_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead: deque[list[tuple[int, Future[tuple[UInt8Array, str]]]]] = deque()
        try:
            for start in [*starts, None, None]:
                if start is not None:
                    indices = range(start, min(start + batch_size, len(folder)))
                    ahead.append([(i, pool.submit(load, i)) for i in indices])
                if len(ahead) > 2 or start is None:
                    yield from _collect(ahead, folder, bad_images)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(
    ahead: "deque[list[tuple[int, Future[tuple[UInt8Array, str]]]]]", folder: ImageFolder,
    bad_images: BadImages,
) -> Iterator[Batch]:  # fmt: skip
    images, labels, files, hashes = [], [], [], []
    for i, future in ahead.popleft() if ahead else []:
        try:
            image, sha256 = future.result()
        except ImageError as error:
            if bad_images == "error":
                raise
            logger.warning("left out: %s", error)
            continue
        images.append(image)
        labels.append(folder.labels[i])
        files.append(folder.files[i])
        hashes.append(sha256)
    if images:
        yield Batch(np.stack(images), np.array(labels, np.int64), files, hashes)


def evaluate_model(
    model: Path, data: Path | None, limit: int | None, device: str, bad_images: BadImages,
    ledger_path: Path | None = None,
) -> dict[str, float | str]:  # fmt: skip
    """Errors of a checkpoint (through torch) or a bundle (as a server here would run it).

    Every answer is written to `ledger_path`, if there is one.
    """
    data = resolve_data(data)
    with _open(model, device) as (runner, config, classes):
        folder = open_split(data, "val", classes, bad_images).first(limit)
        [ledger] = classify_folder([runner], folder, config, bad_images=bad_images)
    if ledger_path is not None:
        write_atomically(ledger_path, Answers.from_ledger(ledger).to_bytes())
    return {**ledger.errors(), "backend": runner.backend, "data": str(data)}


@contextmanager
def _open(model: Path, device: str) -> Iterator[tuple[Runner, Preprocess, list[str]]]:
    if model.is_dir():
        from irv2.runners.choose import open_best

        bundle = Bundle.open(model)
        backend = None if device == "auto" else f"onnxruntime-{device}"
        with open_best(bundle, backend=backend)[1] as runner:
            yield runner, bundle.preprocess, bundle.classes
    else:
        from irv2.checkpoint import Checkpoint
        from irv2.runners.torch import TorchRunner, resolve_device

        checkpoint = Checkpoint.load(model)
        with TorchRunner(checkpoint, resolve_device(device)) as runner:
            yield runner, checkpoint.preprocess, checkpoint.classes
