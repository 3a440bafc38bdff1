"""Image folders: `DIR/train/CLASS/*` and `DIR/val/CLASS/*`, indexed once.

Classes are the sorted folder names. The index (files per class, and files that are no images by
their first bytes) is kept in the user's cache and made anew when a class folder changes.
"""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import platformdirs

from irv2.bundle import write_atomically
from irv2.decode import EXTENSIONS, looks_like_image
from irv2.errors import DataError
from irv2.imagenet import folder_names
from irv2.progress import progress
from irv2.types import IntArray

logger = logging.getLogger(__name__)

BadImages = Literal["error", "skip"]
LAYOUT = "train/CLASS/* and val/CLASS/*"


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """One split: files in class order and their labels, indices into `classes`."""

    root: Path  # DIR/SPLIT
    classes: tuple[str, ...]
    files: tuple[str, ...]  # relative to root
    labels: IntArray  # (len(files),)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        """Where image `i` lies."""
        return self.root / self.files[i]

    def first(self, limit: int | None) -> "ImageFolder":
        """Only `limit` images, taken evenly over the classes; all where it is None."""
        if limit is None or limit >= len(self):
            return self
        # Rank within its class first, so that every class is there before one comes twice.
        starts = np.searchsorted(self.labels, self.labels)
        order = np.lexsort((self.labels, np.arange(len(self)) - starts))
        return self.subset(np.sort(order[:limit]).tolist())

    def subset(self, kept: Sequence[int]) -> "ImageFolder":
        """Only the images at these positions."""
        files = tuple(self.files[i] for i in kept)
        return ImageFolder(self.root, self.classes, files, self.labels[list(kept)])


class _Index(msgspec.Struct, frozen=True):
    """What a scan of a split found; `state` changes when files come, go or are renamed."""

    state: str
    files: dict[str, list[str]]  # class -> file names
    bad: list[str]  # relative paths


def open_split(
    data: Path, split: str, classes: Sequence[str] | None = None, bad_images: BadImages = "error"
) -> ImageFolder:  # fmt: skip
    """The images of `data`/`split`. With `classes`, folders beyond them are refused.

    ImageNet's classes are also found in folders named by their synsets.

    Raises DataError: no such folder, no classes, an empty class, an unknown class, files that are
    no images (with `bad_images` skip these are named and left out).
    """
    root = data / split
    if not data.is_dir():
        raise DataError(data, "no such folder", f"a folder with {LAYOUT}", "see --data, IRV2_DATA")
    if not root.is_dir():
        raise DataError(data, f"no folder {split}/ in it", LAYOUT, "pass --data DIR")
    index = _index(root)
    if not index.files:
        raise DataError(root, "no class folders", LAYOUT)
    names = tuple(classes if classes is not None else sorted(index.files))
    folders = folder_names(names, index.files)
    unknown = sorted(set(index.files) - set(folders))
    if unknown:
        raise DataError(
            root, f"class {unknown[0]} is unknown to the network or to train/",
            f"only the {len(names)} classes of training", "remove or rename the folder",
        )  # fmt: skip
    # Looked at again: an image mended in place leaves its folder's time as it was.
    bad = [path for path in index.bad if not _is_image(root / path)]
    _report_bad(root, bad, bad_images)
    files, labels = [], []
    for label, name in enumerate(folders):
        good = [
            f"{name}/{file}" for file in index.files.get(name, []) if f"{name}/{file}" not in bad
        ]
        if name in index.files and not good:
            raise DataError(root / name, "no images", "at least one", "add images or remove it")
        files += good
        labels += [label] * len(good)
    return ImageFolder(root, names, tuple(files), np.array(labels, np.int64))


def _report_bad(root: Path, bad: list[str], bad_images: BadImages) -> None:
    if not bad:
        return
    named = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
    if bad_images == "error":
        raise DataError(
            root, f"{len(bad)} files are no images: {named}", "image files only",
            "remove them or pass --bad-images skip",
        )  # fmt: skip
    logger.warning("%s: %d files are no images and are left out: %s", root, len(bad), named)


def _index(root: Path) -> _Index:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    state = hashlib.sha256()
    for folder in folders:
        state.update(f"{folder.name}/{folder.stat().st_mtime_ns};".encode())
    cache = _cache_path(root)
    if cache.is_file():
        try:
            index = msgspec.json.decode(cache.read_bytes(), type=_Index)
        except msgspec.MsgspecError as error:
            logger.warning("%s: unreadable index, made anew (%s)", cache, error)
        else:
            if index.state == state.hexdigest():
                return index
    index = _scan(root, folders, state.hexdigest())
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, msgspec.json.encode(index))
    except OSError as error:  # a read-only home: the next start scans again
        logger.warning("%s: the index can't be kept (%s)", cache, error.strerror)
    return index


def _scan(root: Path, folders: list[Path], state: str) -> _Index:
    files = {
        folder.name: sorted(
            path.name for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS
        )
        for folder in folders
    }
    paths = [f"{name}/{file}" for name, members in files.items() for file in members]
    for path in paths:
        if any("\ud800" <= letter <= "\udfff" for letter in path):
            raise DataError(root, f"file name {path!a} is not UTF-8", "UTF-8 names", "rename it")
    with ThreadPoolExecutor(16) as pool:
        is_image = list(
            progress(
                pool.map(lambda path: _is_image(root / path), paths), f"index {root}", len(paths),
                "files",
            )
        )  # fmt: skip
    bad = [path for path, good in zip(paths, is_image, strict=True) if not good]
    return _Index(state, files, bad)


def _is_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return looks_like_image(file.read(32))
    except OSError as error:  # a broken link, a folder: counted and named with the others
        logger.warning("%s: %s", path, error.strerror)
        return False


def _cache_path(root: Path) -> Path:
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("irv2")) / "index" / f"{key}.json"
