"""A folder of images, and shards of it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards_of import SHARD_BYTES

from irv2.data.shard_writer import write_shards


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """train/ with three classes of 3, 2 and 4 images, val/ with one of them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "folder"
    counts = {"train/Moth": 3, "train/ant": 2, "train/zebra": 4, "val/zebra": 2}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Path:
    assert write_shards(source, tmp_path / "shards", SHARD_BYTES) == 11
    return tmp_path / "shards"
