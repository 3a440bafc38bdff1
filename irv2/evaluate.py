"""Classify an image folder through one or several runners: exact counts, one row per image.

Used by `irv2 eval`, by the trainer after every epoch and by the parity gate, which judges all
artefacts in one pass over the images. Each of the trainer's processes classifies its own part
(`folder_for_rank`); their counts are then added up.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irv2.bundle import Bundle
from irv2.data.dataset import BadImages, ImageFolder, open_split
from irv2.data.samples import resolve_data
from irv2.errors import DataError, ImageError
from irv2.images.crops import BATCH_SIZE, combine, views
from irv2.images.decode import FILE_LIMITS, decode
from irv2.images.preprocess import Preprocess
from irv2.ledger import Predictions
from irv2.measures.evaluation import Evaluation
from irv2.runners.base import Runner
from irv2.system.machine import num_cores
from irv2.system.progress import Progress
from irv2.types import FloatArray, IntArray, UInt8Array

logger = logging.getLogger(__name__)

_Loading = tuple[int, "Future[tuple[UInt8Array, str]]"]  # an image's index; its views and sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """The way images are loaded and batched.

    `batch_size` is the number of views in a forward pass; `workers` the number of decoding threads
    (None: one per core); `crops` the number of views per image (irv2.images.crops). Only `crops`
    changes the counts.
    """

    batch_size: int = BATCH_SIZE
    workers: int | None = None
    crops: int = 1


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """Preprocessed images with their labels, files and hashes."""

    images: UInt8Array  # (N x crops, S, S, 3), the views of an image one after the other
    labels: IntArray  # (N,)
    files: list[str]
    sha256: list[str]


def classify_folder(
    runners: Sequence[Runner],
    folder: ImageFolder,
    config: Preprocess,
    *,
    bad_images: BadImages = "error",
    title: str = "evaluate",
    options: EvaluationOptions = EvaluationOptions(),
) -> list[Predictions]:
    """Return each runner's predictions, all from one pass over the images, in the folder's order.

    Raises DataError if no image is left, and ImageError for a bad one unless `bad_images` is skip.
    """
    predictions = classify_part(
        runners, folder, config, bad_images=bad_images, title=title, options=options
    )
    if not all(map(len, predictions)):
        raise DataError(folder.place, "no image could be read", "at least one")
    return predictions


def folder_for_rank(folder: ImageFolder, rank: int, world_size: int) -> ImageFolder:
    """Return what process `rank` of `world_size` classifies: every `world_size`-th batch, or none.

    Batches stay whole: each holds the same images as in a single process and so gives the same
    logits bit for bit.
    """
    starts = range(rank * BATCH_SIZE, len(folder), world_size * BATCH_SIZE)
    end = len(folder)
    return folder.subset([i for s in starts for i in range(s, min(s + BATCH_SIZE, end))])


def classify_part(
    runners: Sequence[Runner],
    folder: ImageFolder,
    config: Preprocess,
    *,
    bad_images: BadImages = "error",
    title: str = "evaluate",
    options: EvaluationOptions = EvaluationOptions(),
) -> list[Predictions]:
    """Classify like `classify_folder`, but a `folder_for_rank`, which may hold no image."""
    batch_size = min([options.batch_size, *(runner.max_batch for runner in runners)])
    logits = [[np.empty((0, runner.num_classes), np.float32)] for runner in runners]
    files: list[str] = []
    sha256: list[str] = []
    labels = [np.empty(0, np.int64)]
    batches = load_batches(
        folder, config, batch_size, bad_images, crops=options.crops, workers=options.workers
    )
    with Progress(title, len(folder), "images") as bar:
        for batch in batches:
            for runner, rows in zip(runners, logits, strict=True):
                rows.append(_answers(runner, batch.images, batch_size, options.crops))
            files += batch.files
            sha256 += batch.sha256
            labels.append(batch.labels)
            bar.advance(len(batch.files))
    all_labels = np.concatenate(labels)
    return [
        Predictions(tuple(files), tuple(sha256), all_labels, np.concatenate(rows))
        for rows in logits
    ]


def _answers(runner: Runner, images: UInt8Array, batch_size: int, crops: int) -> FloatArray:
    return combine(runner.run_all(images, batch_size), crops)


def load_batches(
    folder: ImageFolder,
    config: Preprocess,
    batch_size: int,
    bad_images: BadImages = "error",
    *,
    crops: int = 1,
    workers: int | None = None,
) -> Iterator[EvaluationBatch]:
    """Yield the folder's batches, decoded in threads two batches ahead of the consumer.

    A batch holds up to `batch_size` views, but at least all views of one image. Raises ImageError
    for a bad image unless `bad_images` is skip.
    """

    def load(i: int) -> tuple[UInt8Array, str]:
        try:
            encoded = folder.read(i)
            images = views(decode(encoded, FILE_LIMITS, config.orientation), config, crops)
        except ImageError as error:
            raise folder.named(error, i) from error
        return images, hashlib.sha256(encoded).hexdigest()

    num_images = max(1, batch_size // crops)
    starts = range(0, len(folder), num_images)
    with ThreadPoolExecutor(workers or num_cores()) as pool:
        ahead: deque[list[_Loading]] = deque()
        try:
            for start in starts:
                indices = range(start, min(start + num_images, len(folder)))
                ahead.append([(i, pool.submit(load, i)) for i in indices])
                if len(ahead) > 2:
                    yield from _collect(ahead.popleft(), folder, bad_images)
            while ahead:
                yield from _collect(ahead.popleft(), folder, bad_images)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(
    loading: list[_Loading], folder: ImageFolder, bad_images: BadImages
) -> Iterator[EvaluationBatch]:
    """Yield the batch of these images, or nothing if none could be read."""
    images, labels, files, hashes = [], [], [], []
    for i, future in loading:
        try:
            views_of_one, sha256 = future.result()
        except ImageError as error:
            if bad_images == "error":
                raise
            logger.warning("left out: %s", error)
            continue
        images.append(views_of_one)
        labels.append(folder.labels[i])
        files.append(folder.files[i])
        hashes.append(sha256)
    if images:
        yield EvaluationBatch(np.concatenate(images), np.array(labels, np.int64), files, hashes)


def evaluate_model(
    model: Path,
    data: Path | None,
    limit: int | None,
    device: str,
    bad_images: BadImages,
    options: EvaluationOptions,
    split: str = "val",
) -> Evaluation:
    """Ask a checkpoint (in torch) or a bundle (as a server here would run it) about a split."""
    data = resolve_data(data)
    with _open(model, device) as (runner, config, classes):
        folder = open_split(data, split, classes, bad_images).first(limit)
        [predictions] = classify_folder(
            [runner], folder, config, bad_images=bad_images, options=options
        )
    return Evaluation(
        predictions=predictions,
        images=folder.select(predictions.files),
        classes=classes,
        data=data,
        backend=runner.backend,
        crops=options.crops,
        split=split,
    )


@contextmanager
def _open(model: Path, device: str) -> Iterator[tuple[Runner, Preprocess, list[str]]]:
    if model.is_dir():
        from irv2.runners.choose import open_best

        bundle = Bundle.open(model)
        backend = None if device == "auto" else device
        best = open_best(bundle.path, bundle.artifacts, backend=backend)
        with best.runner as runner:
            bundle.require_fit(best.artifact, runner)
            yield runner, bundle.preprocess, bundle.classes
    else:
        from irv2.checkpoint import Checkpoint
        from irv2.runners.torch import TorchRunner, resolve_device

        checkpoint = Checkpoint.load(model)
        with TorchRunner(checkpoint, resolve_device(device)) as runner:
            yield runner, checkpoint.preprocess, checkpoint.classes
