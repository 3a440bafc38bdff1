"""The checkpoint's answers, computed once per checkpoint and images and kept in the user's cache.

The key is everything that they follow from, so an entry is never out of date; one that is damaged,
or of another key, is computed again. The oldest entries make room for new ones.
"""

import logging
from functools import partial
from typing import Any

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
from irv2.system.arrays import bytes_from_arrays, load_arrays
from irv2.system.cache import cached

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
    ask = partial(
        classify_folder,
        folder=images,
        config=checkpoint.preprocess,
        bad_images=bad_images,
        title="parity",
    )
    together: list[Predictions] = []

    def ask_together() -> Predictions:
        with TorchRunner(checkpoint, device) as torch_runner:
            together.extend(ask([torch_runner, *runners]))
        return together[0]

    key = _key(checkpoint, checkpoint_sha256, images, device)
    known = cached(
        "reference", key, load=_load, make=ask_together, dump=_dump, most_bytes=MAX_CACHE_BYTES
    )
    if together:
        return together
    predictions = ask(runners)
    if any(each.sha256 != known.sha256 for each in predictions):
        got = "images changed while they were read"
        raise DataError(images.place, got, way_out="run it again while nothing writes there")
    return [known, *predictions]


def _key(checkpoint: Checkpoint, sha256: str, images: ImageFolder, device: str) -> dict[str, Any]:
    rows = zip(images.files, hash_files(images), images.labels.tolist(), strict=True)
    return {
        "checkpoint": sha256,
        "preprocess": checkpoint.preprocess.sha256,
        "versions": {**library_versions(), "torch": str(torch.__version__)},
        "device": device,
        "images": list(rows),
    }


def _load(content: bytes) -> Predictions:
    files, sha256, *arrays = load_arrays(content, "files", "sha256", "labels", "logits")
    predictions = Predictions(tuple(files.tolist()), tuple(sha256.tolist()), *arrays)
    logger.info("reference: %d answers of this checkpoint, kept from before", len(predictions))
    return predictions


def _dump(predictions: Predictions) -> bytes:
    return bytes_from_arrays(
        files=np.array(predictions.files),
        sha256=np.array(predictions.sha256),
        labels=predictions.labels,
        logits=predictions.logits,
    )
