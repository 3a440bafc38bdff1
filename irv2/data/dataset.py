"""Labelled images: `DIR/train/CLASS/*` and `DIR/val/CLASS/*`, shards of them, or a list.

Classes are the sorted names of folders, or labels of a list. Names, sizes and times of files are
listed every time. What takes reading is kept in the user's cache until they change: which files are
no images by their first bytes, and where images lie in shards.
"""

import logging
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from irv2.data.imagenet import folder_names
from irv2.data.listing import Listing, class_name, list_folder, list_rows
from irv2.data.lists import SPLITS, and_more, is_list, read_list
from irv2.data.samples import is_sample
from irv2.data.shards import Span, is_sharded, read_contents, read_span, scan_shards, shard_state
from irv2.errors import DataError, ImageError
from irv2.images.decode import EXTENSIONS, looks_like_image
from irv2.system.cache import cached
from irv2.system.files import files_below, read_encoded
from irv2.system.progress import progress
from irv2.system.text import first_few, one_line, quoted
from irv2.types import IntArray

logger = logging.getLogger(__name__)

BadImages = Literal["error", "skip"]
LAYOUT = "train/CLASS/* and val/CLASS/*"  # or the shards of such a folder


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """One split: files in class order and their labels, indices into `classes`."""

    root: Path  # DIR/SPLIT, or the folder of a list
    classes: tuple[str, ...]
    files: tuple[str, ...]  # relative to root; SHARD.tar/KEY.jpg for an image in a shard
    labels: IntArray  # (len(files),)
    spans: IntArray | None = None  # (len(files), 2), offset and size in the shard
    list_path: Path | None = None  # of a list; then root is its folder

    @property
    def data(self) -> Path:
        """What --data named: the folder of the splits, or the list."""
        return self.list_path or self.root.parent

    @property
    def place(self) -> Path:
        """The split's folder or the list, for messages."""
        return self.list_path or self.root

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        """Return where image `i` lies, for messages; `read` returns its bytes."""
        return self.root / self.files[i]

    def num_bytes(self) -> int:
        """Count the bytes of the images that are there."""
        if self.spans is not None:
            return int(self.spans[:, 1].sum())
        num_bytes = 0
        for i in range(len(self)):
            with suppress(OSError):
                num_bytes += self.path(i).stat().st_size
        return num_bytes

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
            way_out += f"; `irv2 data check {self.data}` finds all such files at once"
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
        labels = self.labels[list(indices)]
        return ImageFolder(self.root, self.classes, files, labels, spans, self.list_path)


class _Shards(msgspec.Struct, frozen=True):
    """The result of scanning a split's shards: by class, its images and where they lie."""

    files: dict[str, list[str]]
    spans: dict[str, list[Span]]


def open_split(
    data: Path, split: str, classes: Sequence[str] | None = None, bad_images: BadImages = "error"
) -> ImageFolder:
    """Open the images of `data`/`split`, or those that the list `data` has for it.

    Folders of other classes than `classes` are refused. ImageNet's classes are also found in
    folders named after their synsets.

    Raises DataError for a missing folder, no classes, an empty class, an unknown class, or files
    that are no images (with `bad_images` skip these are logged and left out).
    """
    listing = _list(data, split)
    _tell_left_out(listing)
    if not listing.files:
        raise DataError(listing.place, "no class folders", LAYOUT)
    names = tuple(classes if classes is not None else listing.files)
    folders = folder_names([class_name(name) for name in names], listing.files)
    _refuse_unknown(data, listing, {*folders}, names)
    bad = _find_bad(listing)
    _report_bad(listing, bad, bad_images)
    files, labels, spans = [], [], []
    for label, name in enumerate(folders):
        of_class = listing.files.get(name, [])
        good = [k for k, file in enumerate(of_class) if file not in bad]
        if name in listing.files and not good:
            what = f"{listing.place / quoted(name)}"
            raise DataError(what, "no images", "at least one", "add images or remove it")
        files += [of_class[k] for k in good]
        labels += [label] * len(good)
        if listing.spans and good:
            spans += [listing.spans[name][k] for k in good]
    all_spans = np.array(spans, np.int64) if spans else None
    found = np.array(labels, np.int64)
    _tell_classes(listing, names, found, is_given=classes is not None)
    list_path = data if is_list(data) else None
    return ImageFolder(listing.root, names, tuple(files), found, all_spans, list_path)


def unread_split(data: Path, split: str) -> ImageFolder:
    """Return every image of a split, unread, with the classes found there."""
    return unread(_list(data, split), data if is_list(data) else None)


def unread(listing: Listing, list_path: Path | None = None) -> ImageFolder:
    """Return what was listed, whether or not it is an image."""
    files = [file for members in listing.files.values() for file in members]
    spans = [span for members in (listing.spans or {}).values() for span in members]
    return ImageFolder(
        listing.root,
        tuple(listing.files),
        tuple(files),
        np.repeat(np.arange(len(listing.files)), list(map(len, listing.files.values()))),
        np.array(spans, np.int64) if spans else None,
        list_path,
    )


def open_unsplit(source: Path) -> ImageFolder:
    """Return every image of a folder of class folders, or of a list without a column split, unread.

    Raises DataError for one that is divided already.
    """
    if is_list(source):
        listing = list_rows(source, "")
        return unread(listing, source)
    if not source.is_dir():
        raise DataError(source, "no such folder", "a folder of class folders, or a list")
    if found := splits_of(source):
        got = f"{', '.join(f'{split}/' for split in found)} in it: it is divided already"
        raise DataError(source, got, "a folder of class folders")
    listing = list_folder(source)
    _tell_left_out(listing)
    if not any(listing.files.values()):
        raise DataError(source, "no images in class folders", "CLASS/* for each class")
    return unread(listing)


def splits_of(data: Path) -> list[str]:
    """Return those of train, val and test that `data` has, in this order."""
    if is_list(data):
        listed = {row.split for row in read_list(data)}
        return [split for split in SPLITS if split in listed]
    return [split for split in SPLITS if _is_split(data / split)]


def _is_split(root: Path) -> bool:
    """Whether a folder is a split; ImageNet's test/ has images without classes."""
    has_classes = root.name != "test" or is_sharded(root)
    return root.is_dir() and (has_classes or any(path.is_dir() for path in root.iterdir()))


def find_images(root: Path) -> ImageFolder:
    """Find every image file below `root`, at any depth, or in a list; labels are -1.

    Raises DataError.
    """
    if is_list(root):
        rows = read_list(root)
        names, labels = tuple(row.path for row in rows), np.full(len(rows), -1, np.int64)
        return ImageFolder(root.parent, (), names, labels, None, root)
    if not root.is_dir():
        raise DataError(root, "no such folder", "a folder of images")
    files = sorted(
        str(path.relative_to(root))
        for path in files_below(root)
        if path.suffix.lower() in EXTENSIONS and _problem(path) is None
    )
    if not files:
        raise DataError(root, "no images in it", "a folder of images")
    return ImageFolder(root, (), tuple(files), np.full(len(files), -1, np.int64))


def _list(data: Path, split: str) -> Listing:
    """List the images of a split, unread. Raises DataError if there is none of that name."""
    if is_list(data):
        return list_rows(data, split)
    root = data / split
    if data.is_file():
        expected = f"a folder with {LAYOUT}, or a list named .csv"
        raise DataError(data, "a single file", expected, "see --data, IRV2_DATA")
    if not data.is_dir():
        raise DataError(data, "no such folder", f"a folder with {LAYOUT}", "see --data, IRV2_DATA")
    if not root.is_dir():
        raise _no_split(data, split)
    return _list_shards(root) if is_sharded(root) else list_folder(root)


def _no_split(data: Path, split: str) -> DataError:
    """Return the error that names the splits there are, or the way to them."""
    found = splits_of(data)
    if found:
        named = " and ".join(f"{name}/" for name in found)
        got, way_out = f"no folder {split}/ in it, but {named}", "irv2 data split makes all of them"
    else:
        got = f"no folder {split}/ in it"
        way_out = f"if it holds class folders, irv2 data split {quoted(str(data))} OUT --val 15%"
    return DataError(data, got, LAYOUT, f"pass --data DIR; {way_out}")


def _list_shards(root: Path) -> Listing:
    place = str(root.resolve())
    found: _Shards = cached(
        "index",
        {"root": place, "shards": shard_state(root)},
        load=partial(msgspec.json.decode, type=_Shards),
        make=partial(_index_shards, root),
        dump=msgspec.json.encode,
        name=place,
    )
    return Listing(place=root, root=root, files=found.files, spans=found.spans)


def _index_shards(root: Path) -> _Shards:
    """Index shards without looking for bad images, which are found when they are decoded."""
    classes = read_contents(root).classes
    files: dict[str, list[str]] = {name: [] for name in classes}
    spans: dict[str, list[Span]] = {name: [] for name in classes}
    for member in scan_shards(root):
        files[classes[member.label]].append(member.name)
        spans[classes[member.label]].append(member.span)
    present = {class_name(name): files[name] for name in sorted(classes) if files[name]}
    return _Shards(present, {class_name(name): spans[name] for name in classes if spans[name]})


def _tell_left_out(listing: Listing) -> None:
    others, num_hidden = listing.left_out
    parts = []
    if others:
        parts.append(
            f"{len(others)} files are left out, {one_line(min(others))} for one: only files in "
            "CLASS/ with an image's extension are read"
        )
    if num_hidden:
        parts.append(f"{num_hidden} hidden files, such as ._a.jpg of macOS, are left out")
    if parts:
        logger.warning("%s: %s", listing.place, "; ".join(parts))


def _refuse_unknown(data: Path, listing: Listing, known: set[str], names: Sequence[str]) -> None:
    """Raise DataError if a folder or a label is none of those `known` for the classes `names`."""
    unknown = sorted(set(listing.files) - known)
    if not unknown:
        return
    alike = [name for name in names if name.strip().casefold() == unknown[0].strip().casefold()]
    way_out = "remove or rename the folder"
    if alike:
        way_out = f"rename it to {quoted(alike[0], always=True)}"
    elif is_sample(data):  # used because --data was left out
        way_out = "pass --data DIR with this network's classes"
    elif listing.lines:
        way_out = "remove or correct its rows"
    raise DataError(
        _first_place(listing, listing.files[unknown[0]]),
        f"class {quoted(unknown[0])} is unknown to the network or to train/"
        + and_more(len(unknown) - 1),
        f"only the {len(names)} classes of training",
        way_out,
    )


def _tell_classes(
    listing: Listing, names: Sequence[str], labels: IntArray, *, is_given: bool
) -> None:
    """Log one line if there is only one class, or if some of those given have no images."""
    missing = sorted(set(range(len(names))) - set(labels.tolist())) if is_given else []
    if len(names) == 1 and is_given:
        logger.warning(
            "%s: only one class, %s: every answer is right", listing.place, quoted(names[0])
        )
    if missing:
        logger.warning(
            "%s: no images of %d of the %d classes: %s",
            listing.place,
            len(missing),
            len(names),
            first_few([quoted(names[i]) for i in missing]),
        )


def _report_bad(listing: Listing, bad: dict[str, str], bad_images: BadImages) -> None:
    """Raise DataError, or log a line, about files that are no images: file -> why."""
    if not bad:
        return
    unread = Counter(why for why in bad.values() if why)
    reasons = ", ".join(f"{why}: {num}" for why, num in sorted(unread.items()))
    got = f"{len(bad)} files are no images" + (f" ({reasons})" if reasons else "")
    named = first_few(sorted(map(quoted, bad)))
    if bad_images == "skip":
        logger.warning("%s: %s and are left out: %s", listing.place, got, named)
        return
    if listing.lines:
        first = min(bad, key=listing.lines.__getitem__)
        got = f"{quoted(first)}: {bad[first] or 'no image'}{and_more(len(bad) - 1)}"
        expected = f"image files, relative to {listing.root}"
        way_out = "correct or remove the rows, or pass --bad-images skip"
        raise DataError(_first_place(listing, bad), got, expected, way_out)
    raise DataError(
        listing.place,
        f"{got}: {named}",
        "image files only",
        "replace or remove them, or pass --bad-images skip",
    )


def _first_place(listing: Listing, files: Iterable[str]) -> str:
    """Where the first of `files` stands in a list; for a folder only which it is."""
    if not listing.lines:
        return str(listing.place)
    return f"{listing.place}, line {min(listing.lines[file] for file in files)}"


def _find_bad(listing: Listing) -> dict[str, str]:
    """Find files that are no images, and why: from the user's cache unless one has changed."""
    if listing.spans is not None:
        return {}
    place = str(listing.place.resolve())
    files = [file for members in listing.files.values() for file in members]
    known: list[str] = cached(
        "index",
        {"root": place, "extensions": sorted(EXTENSIONS), "files": listing.state},
        load=partial(msgspec.json.decode, type=list[str]),
        make=lambda: list(_problems(listing, files)),
        dump=msgspec.json.encode,
        name=[place, *listing.state[:1]] if listing.lines else place,
    )
    # Look at them again: one may be mended in place, with its size and time kept.
    found = {file: _problem(listing.root / file) for file in known}
    return {file: why for file, why in found.items() if why is not None}


def _problems(listing: Listing, files: list[str]) -> Iterator[str]:
    """Yield those of `files` that are no images by their first bytes."""
    for path in files:
        if any("\ud800" <= letter <= "\udfff" for letter in path):
            got = f"file name {path!a} is not UTF-8"
            raise DataError(listing.place, got, "UTF-8 names", "rename it")
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda file: _problem(listing.root / file), files)
        shown = progress(found, f"index {listing.place}", len(files), "files")
        yield from (file for file, why in zip(files, shown, strict=True) if why is not None)


def _problem(path: Path) -> str | None:
    """Say why a file can't be an image: "" for its first bytes, None if it seems to be one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"  # a pipe would be waited for
        with path.open("rb") as file:
            return None if looks_like_image(file.read(32)) else ""
    except FileNotFoundError:
        return "broken link" if path.is_symlink() else "missing"
    except (OSError, ValueError) as error:  # ValueError for a name that no file can have
        return getattr(error, "strerror", None) or str(error)
