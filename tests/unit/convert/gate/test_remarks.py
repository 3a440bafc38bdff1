"""What weakens images as evidence is said: training images among them, classes without any."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny_bundle import passed_parity

from irv2.convert.gate.reference import Reference
from irv2.convert.gate.remarks import (
    copies_remark,
    coverage_remark,
    gain_remark,
    labels_remark,
    leakage_remark,
    near_copies_remark,
    remarks_on,
)
from irv2.data.dataset import open_split
from irv2.data.hashes import hash_files
from irv2.data.shard_writer import write_shards
from irv2.ledger import Predictions, first_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Train and val of two classes, three different images each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def reference_on(data: Path) -> Reference:
    folder = open_split(data, "val")
    logits = np.eye(2, dtype=np.float32)[folder.labels]
    hashes = tuple(hash_files(folder))
    return Reference.from_predictions(Predictions(folder.files, hashes, folder.labels, logits))


def test_images_of_the_training_are_counted_whatever_their_names_and_classes(data):
    assert leakage_remark(reference_on(data), data) == ""
    shutil.copy(data / "train/a/0.png", data / "val/a/new.png")
    shutil.copy(data / "train/a/1.png", data / "val/b/other.png")
    remark = leakage_remark(reference_on(data), data)
    assert remark.startswith("2 of 8 evaluation images are in train/ too, byte by byte")


def test_images_of_the_training_are_found_in_shards_too(data, tmp_path):
    shutil.copy(data / "train/a/0.png", data / "val/a/new.png")
    write_shards(data, tmp_path / "shards", 10_000)
    remark = leakage_remark(reference_on(data), tmp_path / "shards")
    assert remark.startswith("1 of 7 evaluation images are in train/ too, byte by byte")


def test_training_images_that_cannot_be_read_cost_a_remark_and_no_more(data, tmp_path):
    write_shards(data, tmp_path / "shards", 10_000)
    for path in (tmp_path / "shards" / "train").glob("*.tar"):
        path.write_bytes(b"half a tar file")
    remark = leakage_remark(reference_on(data), tmp_path / "shards")
    assert remark.startswith("Evaluation images were not looked for in train/ (")


def test_a_training_file_that_changes_is_looked_at_again(data):
    shutil.copy(data / "val/a/0.png", data / "train/b/leak.png")
    assert leakage_remark(reference_on(data), data).startswith("1 of 6")
    Image.new("RGB", (9, 9)).save(data / "train/b/leak.png")
    assert leakage_remark(reference_on(data), data) == ""


def test_a_folder_without_training_images_says_nothing(data):
    shutil.rmtree(data / "train")
    assert leakage_remark(reference_on(data), data) == ""


def test_classes_without_an_evaluation_image_are_named(data):
    reference = reference_on(data)
    assert coverage_remark(reference, ["a", "b"]) == ""
    assert coverage_remark(reference, ["a", "b", "c"]) == (
        "1 of 3 classes have no evaluation image (c): nothing is known of them."
    )


def test_what_weakens_the_evidence_is_logged_too(data, caplog):
    *_limits, weakness = remarks_on(reference_on(data), ["a", "b", "c"], data, confidence=0.95)
    assert "1 of 3 classes have no evaluation image" in weakness
    assert caplog.messages == [f"notice: {weakness}"]


def answers_on(data: Path) -> Predictions:
    """Logits of six classes, different ones for every file's content."""
    folder = open_split(data, "val")
    hashes = tuple(hash_files(folder))
    seeds = [int(sha256[:8], 16) for sha256 in hashes]
    logits = [np.random.default_rng(seed).normal(size=6) for seed in seeds]
    return Predictions(folder.files, hashes, folder.labels, np.array(logits, np.float32))


def test_copies_that_were_left_out_are_counted(data):
    assert copies_remark(5, 0) == ""
    assert copies_remark(5, 495) == (
        "495 of 500 images are copies of others, byte by byte and under the same label; they are "
        "left out, and 5 count."
    )
    remarks = remarks_on(reference_on(data), ["a", "b"], data, confidence=0.95, num_copies=4)
    assert "4 of 10 images are copies" in remarks[2]


def test_the_same_bytes_under_two_labels_are_named(data):
    shutil.copy(data / "val/a/0.png", data / "val/b/again.png")
    answers = answers_on(data)
    assert first_rows(answers.keys) == list(range(7))  # two pictures, as far as labels go
    remark = labels_remark(Reference.from_predictions(answers), answers.files)
    assert remark.startswith("The same bytes lie under more than one label (1 such): ")
    assert "a/0.png = b/again.png" in remark


def test_the_same_picture_in_other_bytes_is_named_and_stays(data):
    answers = answers_on(data)
    assert near_copies_remark(Reference.from_predictions(answers), answers.files) == ""
    logits = answers.logits.copy()
    logits[2] = logits[0] + np.float32(2e-6)  # of one class, and of another batch
    logits[5] = logits[0]  # of another class
    near = Reference.from_predictions(replace(answers, logits=logits))
    remark = near_copies_remark(near, answers.files)
    assert remark.startswith("Near copies, of one class and with the same logits (1 of 6 images): ")
    assert "a/0.png = a/2.png" in remark


def test_with_few_classes_equal_logits_are_no_sign_of_a_copy(data):
    assert near_copies_remark(reference_on(data), [""] * 6) == ""


@pytest.mark.parametrize(
    ("lost", "gained", "is_named"), [(1, 34, True), (193, 897, True), (5, 20, False)]
)
def test_a_gain_that_no_conversion_explains_is_named(lost, gained, is_named):
    parity = passed_parity()
    n = 360 if lost == 1 else 10_000
    change = msgspec.structs.replace(parity.top1, lost=lost, gained=gained)
    remark = gain_remark("model.onnx", msgspec.structs.replace(parity, n=n, top1=change))
    assert remark.startswith(f"model.onnx gains {gained} images and loses {lost}: ") == is_named
    assert bool(remark) == is_named
