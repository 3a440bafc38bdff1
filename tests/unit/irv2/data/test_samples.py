"""The built-in sample and Fashion-MNIST's files."""

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from irv2.data import samples
from irv2.data.dataset import open_split
from irv2.errors import DataError


def grey(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def tree(folder: Path) -> dict[str, str]:
    """Every file with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_sample_has_1437_and_360_images_36_of_each_digit_in_val(sample):
    train, val = open_split(sample, "train"), open_split(sample, "val")
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == val.classes == tuple("0123456789")
    assert Counter(val.labels.tolist()) == dict.fromkeys(range(10), 36)
    # scikit-learn's counts per digit, less 36
    assert Counter(train.labels.tolist()) == dict(
        enumerate([142, 146, 141, 147, 145, 146, 145, 143, 138, 144])
    )


def test_images_are_the_enlarged_scans(sample):
    image = grey(sample / "val/0/0000.png")
    assert image.shape == (64, 64)
    assert image.max() > 200
    assert image.min() < 30


def test_val_holds_the_scans_whose_pixels_have_the_lowest_hashes(sample):
    digits = load_digits()
    fives = [np.rint(s * 255 / 16).astype(np.uint8) for s in digits.images[digits.target == 5]]
    fives.sort(key=lambda scan: hashlib.sha256(scan.tobytes()).digest())
    for i in (0, 17, 35):
        scan, image = fives[i].astype(float), grey(sample / f"val/5/{i:04d}.png").astype(float)
        means = image.reshape(8, 8, 8, 8).mean(axis=(1, 3))
        # Enlarging by 8 nearly keeps the mean of each of the scan's pixels: they correlate.
        assert np.corrcoef(scan.ravel(), means.ravel())[0, 1] > 0.97


def test_train_and_val_share_no_image(sample):
    by_split = {
        split: {grey(path).tobytes() for path in (sample / split).rglob("*.png")}
        for split in ("train", "val")
    }
    assert len(by_split["val"]) == 360
    assert not by_split["train"] & by_split["val"]


def test_the_sample_is_the_same_wherever_it_is_written(sample, tmp_path):
    assert samples.write_digits(tmp_path / "again") == 1797
    assert tree(tmp_path / "again") == tree(sample)


def test_the_sample_is_written_once(sample):
    times = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert samples.sample_folder() == sample
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == times
    assert samples.is_sample(sample)
    assert not samples.is_sample(sample.parent)


def test_a_sample_that_lost_files_is_made_again_with_a_notice(
    sample, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    damaged = tmp_path / "irv2" / sample.name
    shutil.copytree(sample, damaged)
    shutil.rmtree(damaged / "train" / "7")
    assert samples.sample_folder() == damaged
    assert tree(damaged) == tree(sample)
    assert "images instead of 1797, made again" in caplog.text


def test_processes_that_start_together_share_one_whole_sample(sample, tmp_path):
    """As the ranks of one training do, on a machine that has no sample yet."""
    program = "from irv2.data.samples import sample_folder; print(sample_folder())"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    answers = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], answers
    [folder] = {Path(stdout.strip()) for stdout, _ in answers}
    assert tree(folder) == tree(sample)
    assert list(folder.parent.iterdir()) == [folder]  # nobody's half is left


def test_data_left_out_means_the_sample_and_says_so(sample, caplog):
    assert samples.resolve_data(None) == sample
    assert "the built-in sample" in caplog.text
    assert "--data DIR" in caplog.text


def test_data_given_is_taken_in_silence(tmp_path, caplog):
    assert samples.resolve_data(tmp_path) == tmp_path
    assert not caplog.text


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty; expected a new folder"):
        samples.write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert samples.write_digits(tmp_path / "out") == 1797
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 9], np.uint8)
FILES = {
    "train-images-idx3-ubyte": idx(IMAGES),
    "train-labels-idx1-ubyte": idx(LABELS),
    "t10k-images-idx3-ubyte": idx(IMAGES[:2]),
    "t10k-labels-idx1-ubyte": idx(LABELS[:2]),
}


def write_source(folder: Path, packed: bool) -> Path:
    folder.mkdir()
    for name, content in FILES.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_written_as_named_classes(tmp_path, packed):
    source = write_source(tmp_path / "source", packed)
    assert samples.write_fashion_mnist(source, tmp_path / "out") == 14
    train = open_split(tmp_path / "out", "train")
    assert train.classes == samples.FASHION_CLASSES
    assert Counter(train.labels.tolist()) == Counter(LABELS.tolist())
    for i, label in enumerate(LABELS):
        path = tmp_path / "out/train" / samples.FASHION_CLASSES[label] / f"{i:05d}.png"
        np.testing.assert_array_equal(grey(path), IMAGES[i])
    assert len(open_split(tmp_path / "out", "val", train.classes)) == 2


def test_the_folder_one_is_in_is_filled_and_stays_the_same_folder(tmp_path, monkeypatch):
    source = write_source(tmp_path / "source", packed=False)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert samples.write_fashion_mnist(source, Path()) == 14
    assert sorted(map(str, Path().iterdir())) == ["train", "val"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "header", "text"])
def test_a_damaged_idx_file_is_named_in_one_line(tmp_path, packed, name, damage):
    source = write_source(tmp_path / "source", packed)
    path = source / (f"{name}.gz" if packed else name)
    whole = path.read_bytes()
    damaged = {"cut": whole[:-3], "empty": b"", "header": whole[:3], "text": b"not an IDX file"}
    path.write_bytes(damaged[damage])
    with pytest.raises(DataError) as caught:
        samples.write_fashion_mnist(source, tmp_path / "out")
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "IDX file" in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", idx(LABELS[:5]), "12 images and 5 labels in train-"),
        ("train-labels-idx1-ubyte", idx(np.full(12, 10)), r"label 10 in train-.*; .*0 to 9"),
        ("train-images-idx3-ubyte", idx(IMAGES[0]), "not 3-dimensional bytes"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x0d\x01" + bytes(8), "not 1-dimensional bytes"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(tmp_path, name, content, message):
    source = write_source(tmp_path / "source", packed=False)
    (source / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        samples.write_fashion_mnist(source, tmp_path / "out")


def test_a_missing_idx_file_says_where_to_get_it(tmp_path):
    source = write_source(tmp_path / "source", packed=True)
    (source / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"no t10k-images-idx3-ubyte or .*dataset-fashion-mnist"):
        samples.write_fashion_mnist(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
