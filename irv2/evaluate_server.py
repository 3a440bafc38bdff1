"""Evaluate a running server: encoded files in, the probabilities of all classes out."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from irv2.client import Client
from irv2.data.dataset import BadImages, ImageFolder, open_split
from irv2.data.samples import resolve_data
from irv2.errors import DataError, EngineError, ImageError
from irv2.ledger import Predictions
from irv2.measures.evaluation import Evaluation
from irv2.results import Result
from irv2.system.progress import progress
from irv2.types import FloatArray

logger = logging.getLogger(__name__)

IMAGES_AT_A_TIME = 256  # encoded images held in memory
# Below the logarithm of the smallest float32, for probabilities that a server rounds to 0.
LOG_OF_ZERO = -104.0


def evaluate_server(
    client: Client,
    data: Path | None,
    limit: int | None,
    bad_images: BadImages,
    split: str = "val",
) -> Evaluation:
    """Ask a server about a split; its classes are the model's.

    Raises EngineError if it changes its model meanwhile, ImageError for an image that it refuses
    unless `bad_images` is skip, and a RequestError if it does not answer.
    """
    data = resolve_data(data)
    model = client.model()
    classes = list(model.classes)
    folder = open_split(data, split, classes, bad_images).first(limit)
    found: list[int] = []
    hashes, rows = [], []
    answers = _ask(client, folder, len(classes))
    for i, sha256, result in progress(answers, f"ask {client.name}", len(folder), "images"):
        if result.error:
            error = folder.named(result.error, i)
            if bad_images == "error":
                raise error
            logger.warning("left out: %s", error)
            continue
        if result.model_id != model.id:
            got = f"changed from model {model.id[:12]} to {result.model_id[:12]} meanwhile"
            raise EngineError(client.name, got, "one model", "evaluate again")
        found.append(i)
        hashes.append(sha256)
        rows.append(_logits(result, len(classes)))
    if not found:
        raise DataError(folder.place, "no image was answered", "at least one")
    images = folder.subset(found)
    predictions = Predictions(images.files, tuple(hashes), images.labels, np.stack(rows))
    backend = f"{model.backend} at {client.name}"
    return Evaluation(
        predictions=predictions,
        images=images,
        classes=classes,
        data=data,
        backend=backend,
        split=split,
    )


def _ask(client: Client, folder: ImageFolder, top_k: int) -> Iterator[tuple[int, str, Result]]:
    """Yield each image's index, the hash of its file, and its answer or error."""
    for start in range(0, len(folder), IMAGES_AT_A_TIME):
        encoded: dict[int, bytes] = {}
        for i in range(start, min(start + IMAGES_AT_A_TIME, len(folder))):
            try:
                encoded[i] = folder.read(i)
            except ImageError as error:
                yield i, "", Result(error=error)
        results = client.iter_classify(list(encoded.values()), top_k)
        for (i, content), result in zip(encoded.items(), results, strict=True):
            yield i, hashlib.sha256(content).hexdigest(), result


def _logits(result: Result, num_classes: int) -> FloatArray:
    """Return the logarithms of the probabilities: the logits but for a constant.

    Classes whose probability is rounded to 0 keep the order in which the server names them.
    """
    indices = [score.index for score in result.scores]
    probabilities = np.array([score.probability for score in result.scores], np.float64)
    logits = np.full(num_classes, np.nan, np.float32)
    with np.errstate(divide="ignore"):
        logarithms = np.log(probabilities)
    below_zero = LOG_OF_ZERO - np.arange(len(indices))
    logits[indices] = np.where(probabilities > 0, logarithms, below_zero)
    return logits
