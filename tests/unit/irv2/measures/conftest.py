"""Six pictures of three classes and a model's answers to them."""

import numpy as np
import pytest
from PIL import Image

from irv2.data.dataset import open_split
from irv2.ledger import Predictions
from irv2.measures.evaluation import Evaluation

CLASSES = ["blue", "green", "red"]
LOGITS = [[3, 0, 0], [0, 5, 0], [0, 2, 0], [0, 2, 1], [0, 0, 1], [9, 0, 0]]  # two are wrong


@pytest.fixture
def evaluation(tmp_path):
    """Blue pictures first; number 5, which is red, is surely wrong, number 1 is nearly so."""
    for label, name in enumerate(CLASSES):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.zeros((30, 40, 3), np.uint8)
            pixels[..., 2 - label] = 200 + i
            Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / f"{i}.png")
    images = open_split(tmp_path / "data", "val")
    hashes = tuple("0" * 64 for _ in images.files)
    predictions = Predictions(images.files, hashes, images.labels, np.array(LOGITS, np.float32))
    return Evaluation(
        predictions=predictions,
        images=images,
        classes=CLASSES,
        data=tmp_path / "data",
        backend="test",
    )
