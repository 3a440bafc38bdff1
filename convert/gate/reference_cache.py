"""The checkpoint's answers, computed once per checkpoint and images and kept in the user's cache.

The key is a hash over everything that they follow from, so an entry is never out of date; a
damaged one is computed again. The oldest entries make room for new ones.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import BadImages, ImageFolder
from irv2.data.hashes import hash_files
from irv2.errors import DataError
from irv2.evaluate import classify_folder
from irv2.images.preprocess import library_versions
from irv2.ledger import Predictions
from irv2.runners.base import Runner
from irv2.runners.torch import TorchRunner, resolve_device
from irv2.system.arrays import load_arrays
from irv2.system.cache import cache_folder, keep

logger = logging.getLogger(__name__)

MAX_CACHE_BYTES = 2**30  # 50,000 images of 1000 classes take 200 MB


def classify_with_reference(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    runners: list[Runner],
    images: ImageFolder,
    bad_images: BadImages = "error",
) -> list[Predictions]:
    """The checkpoint's predictions, then one per runner, in one pass over the images.

    `checkpoint_sha256` is the checkpoint's identity in the cache.
    """
    device = resolve_device("auto")
    path = cache_folder("reference") / f"{_key(checkpoint, checkpoint_sha256, images, device)}.npz"
    known = _load(path)
    if known is not None:
        logger.info("reference: %d answers of this checkpoint, kept from before", len(known))
        predictions = classify_folder(
            runners, images, checkpoint.preprocess, bad_images=bad_images, title="parity"
        )
        if any(each.sha256 != known.sha256 for each in predictions):
            raise DataError(images.root, "images changed while they were read")
        return [known, *predictions]
    with TorchRunner(checkpoint, device) as torch_runner:
        predictions = classify_folder(
            [torch_runner, *runners],
            images,
            checkpoint.preprocess,
            bad_images=bad_images,
            title="parity",
        )
    _store(path, predictions[0])
    return predictions


def _key(checkpoint: Checkpoint, sha256: str, images: ImageFolder, device: str) -> str:
    rows = list(zip(images.files, hash_files(images), images.labels.tolist(), strict=True))
    versions = {**library_versions(), "torch": str(torch.__version__)}
    parts = [sha256, checkpoint.preprocess.sha256, versions, device, rows]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(path: Path) -> Predictions | None:
    """The entry; None where there is none, or none that is whole."""
    if not path.is_file():
        return None
    try:
        files, sha256, *arrays = load_arrays(path, "files", "sha256", "labels", "logits")
    except ValueError as error:
        logger.warning("%s: damaged, computed again (%s)", path, error)
        return None
    return Predictions(tuple(files.tolist()), tuple(sha256.tolist()), *arrays)


def _store(path: Path, predictions: Predictions) -> None:
    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                files=np.array(predictions.files),
                sha256=np.array(predictions.sha256),
                labels=predictions.labels,
                logits=predictions.logits,
            )

    if keep(path, write, "the reference's answers"):
        _make_room(path.parent)


def _make_room(folder: Path) -> None:
    """Remove the oldest entries beyond the limit; the newest stays, whatever its size."""
    entries = sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    size_bytes = 0
    for i, path in enumerate(entries):
        size_bytes += path.stat().st_size
        if i and size_bytes > MAX_CACHE_BYTES:
            path.unlink()
