"""Image folders: `DIR/train/CLASS/*` and `DIR/val/CLASS/*`, or shards of them, indexed once.

Classes are the sorted folder names. Names, sizes and times of files are listed every time. What
takes reading is kept in the user's cache until they change: which files are no images by their
first bytes, and where images lie in shards.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from irv2.data.imagenet import folder_names
from irv2.data.samples import is_sample
from irv2.data.shards import Span, is_sharded, read_contents, read_span, scan_shards, shard_state
from irv2.errors import DataError, ImageError
from irv2.images.decode import EXTENSIONS, looks_like_image
from irv2.system.cache import cached
from irv2.system.files import files_below, read_encoded
from irv2.system.progress import progress
from irv2.types import IntArray

logger = logging.getLogger(__name__)

BadImages = Literal["error", "skip"]
LAYOUT = "train/CLASS/* and val/CLASS/*"  # or the shards of such a folder


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """One split: files in class order and their labels, indices into `classes`."""

    root: Path  # DIR/SPLIT
    classes: tuple[str, ...]
    files: tuple[str, ...]  # relative to root; SHARD.tar/KEY.jpg for an image in a shard
    labels: IntArray  # (len(files),)
    spans: IntArray | None = None  # (len(files), 2), offset and size in the shard

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        """Return where image `i` lies, for messages; `read` returns its bytes."""
        return self.root / self.files[i]

    def read(self, i: int) -> bytes:
        """Return the encoded image `i`; raises ImageError if it can't be read."""
        if self.spans is None:
            return read_encoded(self.path(i))
        shard, _, _ = self.files[i].partition("/")
        try:
            return read_span(self.root / shard, Span(*self.spans[i].tolist()))
        except ImageError as error:
            raise error.about(self.path(i)) from error

    def named(self, error: ImageError, i: int) -> ImageError:
        """Return `error` about image `i`, with what to do about it."""
        way_out = "replace the file"
        if self.spans is not None:
            way_out = "replace it where it came from and run `irv2 data shard` again"
        way_out += " or pass --bad-images skip"
        if self.classes:
            way_out += f"; `irv2 data check {self.root.parent}` finds all such files at once"
        return error.about(self.path(i), way_out)

    def first(self, limit: int | None) -> "ImageFolder":
        """Keep `limit` images, taken evenly from the start of each class; all if it is None."""
        if limit is None or limit >= len(self):
            return self
        # Sort by rank within the class first, so that every class occurs before one repeats.
        starts = np.searchsorted(self.labels, self.labels)
        order = np.lexsort((self.labels, np.arange(len(self)) - starts))
        return self.subset(np.sort(order[:limit]).tolist())

    def select(self, files: Sequence[str]) -> "ImageFolder":
        """Keep only the images in these files, in this order."""
        position = {file: i for i, file in enumerate(self.files)}
        return self.subset([position[file] for file in files])

    def subset(self, indices: Sequence[int]) -> "ImageFolder":
        """Keep only the images at these indices, in this order."""
        files = tuple(self.files[i] for i in indices)
        spans = None if self.spans is None else self.spans[list(indices)]
        return ImageFolder(self.root, self.classes, files, self.labels[list(indices)], spans)


class _Index(msgspec.Struct, frozen=True):
    """The result of scanning a split."""

    files: dict[str, list[str]]  # class -> files relative to the split
    bad: list[str]  # those of `files` that are no images
    spans: dict[str, list[Span]] | None  # class -> positions of its images in their shards


class _Listed(NamedTuple):
    """The image files of a class folder, and a hash that changes with a name, size or time."""

    files: list[str]  # relative to the split, sorted
    state: str


def open_split(
    data: Path, split: str, classes: Sequence[str] | None = None, bad_images: BadImages = "error"
) -> ImageFolder:
    """Open the images of `data`/`split`; folders of other classes than `classes` are refused.

    ImageNet's classes are also found in folders named after their synsets.

    Raises DataError for a missing folder, no classes, an empty class, an unknown class, or files
    that are no images (with `bad_images` skip these are logged and left out).
    """
    root = data / split
    if not data.is_dir():
        raise DataError(data, "no such folder", f"a folder with {LAYOUT}", "see --data, IRV2_DATA")
    if not root.is_dir():
        raise DataError(data, f"no folder {split}/ in it", LAYOUT, "pass --data DIR")
    _check_names(root)
    index = _index(root)
    if not index.files:
        raise DataError(root, "no class folders", LAYOUT)
    names = tuple(classes if classes is not None else sorted(index.files))
    folders = folder_names(names, index.files)
    unknown = sorted(set(index.files) - set(folders))
    if unknown:
        way_out = "remove or rename the folder"
        if is_sample(data):  # used because --data was left out
            way_out = "pass --data DIR with this network's classes"
        raise DataError(
            root,
            f"class {unknown[0]} is unknown to the network or to train/",
            f"only the {len(names)} classes of training",
            way_out,
        )
    # Check bad files again: one may be mended in place, with its size and time kept.
    bad = {path for path in index.bad if not _is_image(root / path)}
    _report_bad(root, bad, bad_images)
    files, labels, spans = [], [], []
    for label, name in enumerate(folders):
        of_class = index.files.get(name, [])
        good = [k for k, file in enumerate(of_class) if file not in bad]
        if name in index.files and not good:
            raise DataError(root / name, "no images", "at least one", "add images or remove it")
        files += [of_class[k] for k in good]
        labels += [label] * len(good)
        if index.spans and good:
            spans += [index.spans[name][k] for k in good]
    all_spans = np.array(spans, np.int64) if spans else None
    return ImageFolder(root, names, tuple(files), np.array(labels, np.int64), all_spans)


def find_images(root: Path) -> ImageFolder:
    """Find every image file below `root`, at any depth; labels are -1. Raises DataError."""
    if not root.is_dir():
        raise DataError(root, "no such folder", "a folder of images")
    files = sorted(
        str(path.relative_to(root))
        for path in files_below(root)
        if path.suffix.lower() in EXTENSIONS and _is_image(path)
    )
    if not files:
        raise DataError(root, "no images in it", "a folder of images")
    return ImageFolder(root, (), tuple(files), np.full(len(files), -1, np.int64))


def _report_bad(root: Path, bad: set[str], bad_images: BadImages) -> None:
    if not bad:
        return
    examples = ", ".join(sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
    if bad_images == "error":
        raise DataError(
            root,
            f"{len(bad)} files are no images: {examples}",
            "image files only",
            "replace or remove them, or pass --bad-images skip",
        )
    logger.warning("%s: %d files are no images and are left out: %s", root, len(bad), examples)


def _check_names(root: Path) -> None:
    for path in (root, *_class_folders(root)):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            got = f"folder name {path.name!a} is not UTF-8"
            raise DataError(root, got, "UTF-8 names", "rename it") from error


def _index(root: Path) -> _Index:
    place = str(root.resolve())
    if is_sharded(root):
        index: _Index = cached(
            "index",
            {"root": place, "shards": shard_state(root)},
            load=partial(msgspec.json.decode, type=_Index),
            make=partial(_index_shards, root),
            dump=msgspec.json.encode,
            name=place,
        )
        return index
    listed = _list(root)
    files = {name: found.files for name, found in listed.items()}
    bad: list[str] = cached(
        "index",
        {
            "root": place,
            "extensions": sorted(EXTENSIONS),
            "classes": {name: [len(found.files), found.state] for name, found in listed.items()},
        },
        load=partial(msgspec.json.decode, type=list[str]),
        make=lambda: _find_bad(root, [file for members in files.values() for file in members]),
        dump=msgspec.json.encode,
        name=place,
    )
    return _Index(files, bad, None)


def _list(root: Path) -> dict[str, _Listed]:
    """The image files of every class, with sizes and times: a folder's own time may be kept."""
    folders = _class_folders(root)
    with ThreadPoolExecutor(16) as pool:  # asking a network disk takes long, and no processor
        found = list(pool.map(_list_class, folders))
    return {folder.name: listed for folder, listed in zip(folders, found, strict=True)}


def _list_class(folder: Path) -> _Listed:
    with os.scandir(folder) as entries:
        rows = sorted(
            (entry.name, *_size_and_time(entry))
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS  # noqa: PTH122 (of a million)
        )
    state = hashlib.sha256(repr(rows).encode()).hexdigest()
    return _Listed([f"{folder.name}/{name}" for name, _, _ in rows], state)


def _size_and_time(entry: "os.DirEntry[str]") -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:  # a broken link, which is found to be no image
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _index_shards(root: Path) -> _Index:
    """Index shards without looking for bad images, which are found when they are decoded."""
    classes = read_contents(root).classes
    files: dict[str, list[str]] = {name: [] for name in classes}
    spans: dict[str, list[Span]] = {name: [] for name in classes}
    for member in scan_shards(root):
        files[classes[member.label]].append(member.name)
        spans[classes[member.label]].append(member.span)
    present = {name: members for name, members in files.items() if members}
    return _Index(present, [], spans)


def _find_bad(root: Path, paths: list[str]) -> list[str]:
    """Those of `paths` in `root` that are no images by their first bytes."""
    _warn_of_others(root, paths)
    for path in paths:
        if any("\ud800" <= letter <= "\udfff" for letter in path):
            raise DataError(root, f"file name {path!a} is not UTF-8", "UTF-8 names", "rename it")
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda path: _is_image(root / path), paths)
        is_image = list(progress(found, f"index {root}", len(paths), "files"))
    return [path for path, good in zip(paths, is_image, strict=True) if not good]


def _warn_of_others(root: Path, files: Sequence[str]) -> None:
    """Log one line about all other files in the split, at any depth, except hidden ones."""
    listed = {f"{root}/{file}" for file in files}
    others = []
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "."]
        paths = (f"{place}/{name}" for name in names if name[0] != ".")
        others += [path for path in paths if path not in listed]
    if others:
        logger.warning(
            "%s: %d files are left out, %s for one: only files in CLASS/ with an image's extension "
            "are read",
            root,
            len(others),
            min(others),
        )


def _is_image(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never end
            logger.warning("%s: a folder, a pipe or a device", path)
            return False
        with path.open("rb") as file:
            return looks_like_image(file.read(32))
    except OSError as error:  # a broken link counts as a bad image
        logger.warning("%s: %s", path, error.strerror)
        return False
