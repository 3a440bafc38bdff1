"""Real data without a download: scikit-learn's handwritten digits, and Fashion-MNIST's files.

Digits: 1797 scans of 8x8 pixels with 17 grey levels (UCI Optical Recognition of Handwritten
Digits), written enlarged to 64x64 as PNG. Fashion-MNIST: the IDX files of Debian's package
dataset-fashion-mnist, 28x28 grey, as PNG.
"""

import gzip
import hashlib
import io
import logging
import math
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from irv2 import __version__
from irv2.errors import DataError, EngineError, InputError
from irv2.system.cache import cache_folder
from irv2.system.files import new_folder
from irv2.system.progress import progress
from irv2.system.stop import raise_if_stopped
from irv2.types import UInt8Array

logger = logging.getLogger(__name__)

NUM_DIGITS = 1797
NUM_VAL_PER_DIGIT = 36
DIGIT_SIDE = 64  # pixels of a written digit; 8 of them are one pixel of the scan
FASHION_CLASSES = (
    *("0_t-shirt", "1_trouser", "2_pullover", "3_dress", "4_coat"),
    *("5_sandal", "6_shirt", "7_sneaker", "8_bag", "9_ankle-boot"),
)

# (split/class/file name, grey image)
_Picture = tuple[str, UInt8Array]


def resolve_data(data: Path | None) -> Path:
    """Return the given data folder, or else the built-in sample, with a log line saying so."""
    if data is not None:
        return data
    logger.warning(
        "data: the built-in sample (1797 handwritten digits); name a real data set with "
        "--data DIR, a folder with train/CLASS/* and val/CLASS/*"
    )
    return sample_folder()


def sample_folder() -> Path:
    """Return the built-in sample's folder in the user's cache, written on first use.

    It is written again if files of it are missing, as after a clean-up of old files.
    Raises EngineError if scikit-learn, which holds the images, is not installed.
    """
    folder = _sample_path()
    if folder.is_dir() and (found := sum(1 for _ in folder.rglob("*.png"))) != NUM_DIGITS:
        logger.warning("%s: %d images instead of %d, made again", folder, found, NUM_DIGITS)
        shutil.rmtree(folder)
    if not folder.is_dir():
        try:
            write_digits(folder)
        except InputError:
            if not folder.is_dir():
                raise  # otherwise another process, such as another rank of a training, was faster
    return folder


def is_sample(data: Path) -> bool:
    """Whether this is the built-in sample's folder in the user's cache."""
    return data.absolute() == _sample_path().absolute()


def _sample_path() -> Path:
    return cache_folder(f"sample-{__version__}")


def write_digits(out: Path) -> int:
    """Write the sample: 1437 images in `out`/train, 360 (36 per class) in `out`/val.

    A digit's split depends on the hash of its pixels, so it is the same everywhere.
    Returns the number of images. Raises DataError if `out` is not empty.
    """
    return _write_folder(out, list(_digits()))


def write_fashion_mnist(source: Path, out: Path) -> int:
    """Write Fashion-MNIST from its four IDX files in `source`; returns the number of images.

    Raises DataError if a file is missing or damaged, or `out` is not empty.
    """
    return _write_folder(
        out, [*_fashion(source, "train", "train"), *_fashion(source, "t10k", "val")]
    )


def _digits() -> Iterator[_Picture]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise_if_stopped()
        raise EngineError(
            "the built-in sample",
            "scikit-learn is not installed",
            way_out='pip install "irv2[train]", or pass --data DIR',
        ) from error
    digits = load_digits()
    for label in range(10):
        scans = [
            np.rint(scan * (255 / 16)).astype(np.uint8)
            for scan in digits.images[digits.target == label]
        ]
        scans.sort(key=lambda scan: hashlib.sha256(scan.tobytes()).hexdigest())
        for i, scan in enumerate(scans):
            split = "val" if i < NUM_VAL_PER_DIGIT else "train"
            side = (DIGIT_SIDE, DIGIT_SIDE)
            large = Image.fromarray(scan).resize(side, Image.Resampling.BICUBIC)
            yield f"{split}/{label}/{i:04d}.png", np.asarray(large)


def _fashion(source: Path, prefix: str, split: str) -> Iterator[_Picture]:
    images = _read_idx(source, f"{prefix}-images-idx3-ubyte", rank=3)
    labels = _read_idx(source, f"{prefix}-labels-idx1-ubyte", rank=1)
    if len(images) != len(labels):
        got = f"{len(images)} images and {len(labels)} labels in {prefix}-*"
        raise DataError(source, got, "as many labels as images", "copy both files again")
    if labels.max(initial=0) >= len(FASHION_CLASSES):
        raise DataError(source, f"label {labels.max()} in {prefix}-*", "labels 0 to 9")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield f"{split}/{FASHION_CLASSES[label]}/{i:05d}.png", image


def _read_idx(source: Path, name: str, rank: int) -> UInt8Array:
    """Read an IDX file of bytes, maybe gzipped: magic 0 0 8 rank, big-endian sizes, data."""
    plain, packed = source / name, source / f"{name}.gz"
    if not plain.is_file() and not packed.is_file():
        raise DataError(
            source,
            f"no {name} or {name}.gz in it",
            "Fashion-MNIST's four IDX files",
            "apt-get install dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist",
        )
    path, expected = (plain, "an IDX file") if plain.is_file() else (packed, "a gzipped IDX file")
    try:
        content = plain.read_bytes() if path is plain else gzip.decompress(packed.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(path, str(error), expected) from error
    start = 4 + 4 * rank
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    if content[:4] != bytes((0, 0, 8, rank)) or len(content) != start + math.prod(shape):
        raise DataError(path, f"not {rank}-dimensional bytes, or cut short", expected)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _write_folder(out: Path, pictures: list[_Picture]) -> int:
    if out.exists() and any(out.iterdir()):
        raise DataError(out.absolute(), "is not empty", "a new folder", "pass another --out")
    with new_folder(out, lambda: sum(len(_png(image)) for _, image in pictures)) as folder:
        for name, image in progress(pictures, f"write {out}", len(pictures), "images"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(image))
    return len(pictures)


def _png(image: UInt8Array) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png")
    return content.getvalue()
