"""The image files of a split by class, unread: from class folders, or from the rows of a list.

Class names are compared in Unicode's composed form (NFC), since macOS writes `café` decomposed.
Hidden files are left out: `._cat.jpg` is what macOS keeps beside cat.jpg on other disks.
"""

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from irv2.data.lists import read_list, read_rows
from irv2.data.shards import Span
from irv2.errors import DataError
from irv2.images.decode import EXTENSIONS
from irv2.system.files import is_hidden
from irv2.system.text import quoted

logger = logging.getLogger(__name__)

STATS_AT_A_TIME = 1000  # files of a list that one thread looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a split; `state` changes with a name, size or time."""

    place: Path  # DIR/SPLIT or the list, for messages
    root: Path  # the folder that files are relative to
    files: Mapping[str, list[str]]  # class -> its files, sorted
    spans: Mapping[str, list[Span]] | None = None  # class -> positions of its images in shards
    state: list[object] = field(default_factory=list)
    lines: Mapping[str, int] = field(default_factory=dict)  # file -> line of the list
    left_out: "LeftOut" = field(default_factory=lambda: LeftOut([], 0))


class LeftOut(NamedTuple):
    """What a folder holds beside its images: other files, and hidden images."""

    others: list[str]
    num_hidden: int


class _ClassFolder(NamedTuple):
    files: list[str]  # relative to the split, sorted
    state: str
    left_out: LeftOut


def list_folder(root: Path) -> Listing:
    """List the class folders of a split, with sizes and times: a folder's own time may be kept."""
    folders = _class_folders(root)
    for path in (root, *folders):
        _check_utf8(path)
    with ThreadPoolExecutor(16) as pool:  # asking a network disk takes long, and no processor
        found = list(pool.map(_list_class, folders))
    files: dict[str, list[str]] = {}
    for folder, listed in zip(folders, found, strict=True):
        files.setdefault(class_name(folder.name), []).extend(listed.files)
    names = [folder.name for folder in folders]
    _tell_spellings(root, names)
    beside = [
        str(path) for path in root.iterdir() if path.is_file() and not is_hidden(path.name)
    ]  # of the classes
    return Listing(
        place=root,
        root=root,
        files={name: sorted(members) for name, members in sorted(files.items())},
        state=[[name, listed.state] for name, listed in zip(names, found, strict=True)],
        left_out=LeftOut(
            beside + [path for listed in found for path in listed.left_out.others],
            sum(listed.left_out.num_hidden for listed in found),
        ),
    )


def list_rows(path: Path, split: str) -> Listing:
    """List the files that a list has for `split`, or ("") all of one that has no column split.

    Raises DataError for a list without any.
    """
    _check_utf8(path)
    everything = read_list(path) if split else read_rows(path)
    _tell_spellings(path, {row.written for row in everything})
    rows = sorted((row for row in everything if row.split == split), key=lambda row: row.path)
    if not rows:
        others = ", ".join(sorted({row.split for row in everything})) or "nothing"
        wanted = f"of split {split}" if split else "without a split"
        raise DataError(path, f"no rows {wanted}, but of {others}", "some rows of each")
    files: dict[str, list[str]] = {}
    for row in rows:
        files.setdefault(class_name(row.written), []).append(row.path)
    names = [row.path for row in rows]
    parts = [names[i : i + STATS_AT_A_TIME] for i in range(0, len(names), STATS_AT_A_TIME)]
    with ThreadPoolExecutor(16) as pool:
        states = list(pool.map(lambda part: _state_of(path.parent, part), parts))
    return Listing(
        place=path,
        root=path.parent,
        files=dict(sorted(files.items())),
        state=[split, *states],
        lines={row.path: row.line for row in rows},
    )


def class_name(written: str) -> str:
    """Return the class that a folder or a label names: composed and decomposed are one."""
    return unicodedata.normalize("NFC", written)


def _tell_spellings(place: Path, names: Iterable[str]) -> None:
    """Log one line about classes that are one but for Unicode's form, or nearly one to the eye."""
    composed: dict[str, str] = {}
    folded: dict[str, str] = {}
    for name in sorted(names):
        known = class_name(name)
        if composed.setdefault(known, name) != name:
            logger.warning(
                "%s: %s, written composed and decomposed (Unicode NFC and NFD), is one class",
                place,
                quoted(known),
            )
        other = folded.setdefault(known.strip().casefold(), known)
        if other != known:
            logger.warning(
                "%s: %s and %s are two classes; rename one if they are the same",
                place,
                quoted(other, always=True),
                quoted(known, always=True),
            )


def _class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def _list_class(folder: Path) -> _ClassFolder:
    rows: list[tuple[str, int, int]] = []
    others: list[str] = []
    num_hidden = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (of a million)
            if is_hidden(entry.name):
                num_hidden += suffix in EXTENSIONS
            elif suffix in EXTENSIONS:
                rows.append((entry.name, *_size_and_time(entry)))
            elif entry.is_dir(follow_symlinks=False):
                others += _visible_below(entry.path)
            else:
                others.append(entry.path)
    rows.sort()
    files = [f"{folder.name}/{name}" for name, _, _ in rows]
    return _ClassFolder(files, _hash(rows), LeftOut(others, num_hidden))


def _visible_below(folder: str) -> list[str]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [f"{place}/{name}" for name in names if not is_hidden(name)]
    return found


def _state_of(root: Path, files: list[str]) -> str:
    return _hash([(file, *_size_and_time(root / file)) for file in files])


def _size_and_time(path: "os.DirEntry[str] | Path") -> tuple[int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):  # a broken link or no file at all, which is found to be no image
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _hash(rows: list[tuple[str, int, int]]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _check_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        got = f"name {path.name!a} is not UTF-8"
        raise DataError(path, got, "UTF-8 names", "rename it") from error
