"""Counting errors: exact, each image once, whatever the batches, and answers from logits."""

import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irv2.data.dataset import ImageFolder, open_split
from irv2.data.shard_writer import write_shards
from irv2.errors import DataError, ImageError, ImageReason
from irv2.evaluate import (
    BATCH_SIZE,
    EvaluationOptions,
    classify_folder,
    folder_for_rank,
    load_batches,
)
from irv2.images.preprocess import Preprocess
from irv2.runners.base import Runner

CONFIG = Preprocess(resize=8, crop=8)
NUM_CLASSES = 7


class PixelRunner(Runner):
    """Reads its answer off the image: red is the best class, green how sure it is."""

    def __init__(self, max_batch: int) -> None:
        self.backend, self.image_size, self.num_classes = "pixels", 8, NUM_CLASSES
        self.max_batch = max_batch
        self.batch_sizes: list[int] = []

    def run(self, images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (8, 8, 3)
        assert 1 <= len(images) <= self.max_batch
        self.batch_sizes.append(len(images))
        red, green = images[:, 0, 0, 0].astype(int) // 10, images[:, 0, 0, 1]
        distance = np.abs(np.arange(NUM_CLASSES) - red[:, None])
        return (-distance - green[:, None] / 1000).astype(np.float32)


class ConstantRunner(PixelRunner):
    """The same answer for every image: classes 0, 1, 2, ... in this order."""

    def run(self, images: np.ndarray) -> np.ndarray:
        super().run(images)
        row = -np.arange(NUM_CLASSES, dtype=np.float32)
        return np.repeat(row[None], len(images), axis=0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven classes of 1 to 7 images, 28 in all; of class c the first shows the next class."""
    for label in range(NUM_CLASSES):
        folder = tmp_path / "val" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(label + 1):
            shown = (label + 1) % NUM_CLASSES if i == 0 else label
            Image.new("RGB", (8, 8), (shown * 10 + 5, i, 0)).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def folder(data: Path) -> ImageFolder:
    return open_split(data, "val")


def test_errors_are_counted_image_by_image(folder):
    [pixels, constant] = classify_folder([PixelRunner(64), ConstantRunner(64)], folder, CONFIG)
    # One of each class is answered with its neighbour: 7 of 28. The next class of class 6 is 0,
    # six away, so that image's label is not among the five nearest.
    assert pixels.errors() == {"n": 28, "top1_error": 25.0, "top5_error": 100 / 28}
    # Only class 0's single image is right; classes 5 and 6 (6 + 7 images) are beyond the five.
    assert constant.errors() == {"n": 28, "top1_error": 2700 / 28, "top5_error": 1300 / 28}


def test_a_ledger_has_one_row_per_image_in_the_folders_order(folder):
    [ledger] = classify_folder([PixelRunner(64)], folder, CONFIG)
    assert ledger.files == folder.files
    assert ledger.labels.tolist() == folder.labels.tolist()
    assert ledger.logits.shape == (28, NUM_CLASSES)
    assert ledger.sha256[3] == hashlib.sha256(folder.path(3).read_bytes()).hexdigest()
    assert ledger.top5.shape == (28, 5)
    best = [row * 10 + 5 for row in ledger.top5[:, 0]]
    for i, red in enumerate(best):
        with Image.open(folder.path(i)) as image:
            assert image.getpixel((0, 0))[0] == red


@pytest.mark.parametrize("max_batch", [1, 3, 5, 28, 64])
def test_counts_do_not_depend_on_the_batch(folder, max_batch):
    [expected] = classify_folder([PixelRunner(64)], folder, CONFIG)
    runner = PixelRunner(max_batch)
    [ledger] = classify_folder([runner], folder, CONFIG)
    assert ledger.errors() == expected.errors()
    np.testing.assert_array_equal(ledger.logits, expected.logits)
    assert sum(runner.batch_sizes) == 28  # each image once


def test_several_runners_share_one_pass_and_the_smallest_batch(folder):
    runners = [PixelRunner(64), PixelRunner(6)]
    first, second = classify_folder(runners, folder, CONFIG)
    assert runners[0].batch_sizes == runners[1].batch_sizes == [6, 6, 6, 6, 4]
    np.testing.assert_array_equal(first.logits, second.logits)


def test_counts_do_not_depend_on_the_order(folder):
    [expected] = classify_folder([PixelRunner(5)], folder, CONFIG)
    order = np.random.default_rng(0).permutation(len(folder))
    files = tuple(folder.files[i] for i in order)
    shuffled = ImageFolder(folder.root, folder.classes, files, folder.labels[order])
    [ledger] = classify_folder([PixelRunner(5)], shuffled, CONFIG)
    assert ledger.errors() == expected.errors()
    assert ledger.files == files


def test_shards_are_evaluated_as_their_folder(data, folder, tmp_path):
    write_shards(data, tmp_path / "shards", 2_000)
    [expected] = classify_folder([PixelRunner(5)], folder, CONFIG)
    [found] = classify_folder([PixelRunner(5)], open_split(tmp_path / "shards", "val"), CONFIG)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert (found.sha256, found.errors()) == (expected.sha256, expected.errors())


def test_a_bad_image_stops_the_evaluation_and_is_named(data, folder):
    (data / "val/class3/1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ImageError, match=r"class3/1\.png: ") as caught:
        classify_folder([PixelRunner(5)], folder, CONFIG)
    assert caught.value.reason is ImageReason.TRUNCATED


def test_skipped_images_are_named_and_leave_the_right_n(data, folder, caplog):
    bad = ["class0/0.png", "class3/1.png", "class6/2.png"]
    for name in bad:
        (data / "val" / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    [ledger] = classify_folder([PixelRunner(5)], folder, CONFIG, bad_images="skip")
    # Of the 28, one that was wrong (class 0's) and two that were right are gone.
    assert ledger.errors() == {"n": 25, "top1_error": 600 / 25, "top5_error": 100 / 25}
    assert set(folder.files) - set(ledger.files) == set(bad)
    assert all(f"left out: {data / 'val' / name}: " in caplog.text for name in bad)


def test_a_file_that_vanished_after_the_index_was_made_is_named(data, folder):
    (data / "val/class3/1.png").unlink()
    with pytest.raises(ImageError, match=rf"class3/1\.png: {os.strerror(errno.ENOENT)}"):
        classify_folder([PixelRunner(5)], folder, CONFIG)


def test_no_readable_image_at_all_is_an_error(data):
    shutil.rmtree(data / "val")
    path = data / "val/class0/0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match="no image could be read"):
        classify_folder([PixelRunner(5)], open_split(data, "val"), CONFIG, bad_images="skip")


def test_batches_are_read_ahead_and_stop_with_their_consumer(folder):
    batches = load_batches(folder, CONFIG, batch_size=2)
    first = next(batches)
    assert first.images.shape == (2, 8, 8, 3)
    assert first.images.dtype == np.uint8
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_counts_do_not_depend_on_the_workers(folder, workers):
    [expected] = classify_folder([PixelRunner(64)], folder, CONFIG)
    options = EvaluationOptions(workers=workers, batch_size=3)
    [ledger] = classify_folder([PixelRunner(64)], folder, CONFIG, options=options)
    assert (ledger.files, ledger.sha256) == (expected.files, expected.sha256)
    np.testing.assert_array_equal(ledger.logits, expected.logits)


def wide(folder: ImageFolder, num: int) -> ImageFolder:
    """A folder of `num` images under names of their own, as far as its index goes."""
    files = tuple(f"{i}" for i in range(num))
    return ImageFolder(folder.root, folder.classes, files, np.arange(num) % NUM_CLASSES)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num", [1, BATCH_SIZE, BATCH_SIZE + 1, 50, 1000])
def test_shares_hold_every_image_once_in_whole_batches(folder, num, world_size):
    whole = wide(folder, num)
    parts = [folder_for_rank(whole, rank, world_size) for rank in range(world_size)]
    assert sorted(file for part in parts for file in part.files) == sorted(whole.files)
    batches = [
        part.files[start : start + BATCH_SIZE]
        for part in parts
        for start in range(0, len(part), BATCH_SIZE)
    ]
    alone = [whole.files[s : s + BATCH_SIZE] for s in range(0, num, BATCH_SIZE)]
    assert sorted(batches) == sorted(alone)
    assert max(map(len, parts)) - min(map(len, parts)) <= BATCH_SIZE
