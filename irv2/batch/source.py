"""The pictures of a folder with its shards, or of a list: their names first, their bytes later."""

import csv
import heapq
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from irv2.data.lists import is_list, read_paths
from irv2.data.shards import images_in, read_listed
from irv2.errors import ImageError, ImageReason, InputError
from irv2.images.decode import EXTENSIONS, FILE_LIMITS
from irv2.system.files import (
    entries_below,
    file_sha256,
    is_file_or_unreadable,
    read_encoded,
)

logger = logging.getLogger(__name__)

SHARD_SUFFIX = ".tar"
NAMES_AT_A_TIME = 250_000  # sorted in memory, 50 MB
TELL_EVERY_S = 5.0


class Picture(NamedTuple):
    """A picture's name in its source and, if it lies in a shard, where; text, as in a CSV file."""

    name: str  # SHARD.tar/KEY.jpg for one in a shard
    shard: str = ""
    offset: str = ""  # of its header
    num_bytes: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A folder, or a list named .csv; names are relative to the folder, or to that of the list."""

    path: Path

    @property
    def root(self) -> Path:
        """The folder that names are relative to."""
        return self.path.parent if is_list(self.path) else self.path

    def find(self) -> Iterator[Picture]:
        """Yield every picture, unread and in any order, whether or not it is there.

        In a folder these are the files with an image's extension, at any depth and in shards.
        Raises InputError for what can't be listed.
        """
        if is_list(self.path):
            for name in read_paths(self.path):
                yield Picture(os.path.normpath(name))
        elif self.path.is_dir():
            yield from self._find_below()
        else:
            got = "a single file" if self.path.exists() else "no such folder"
            raise InputError(self.path, got, "a folder, or a list named .csv")

    def read(self, picture: Picture) -> bytes:
        """Return an encoded picture; raises ImageError, about its name, if it can't be read.

        What is larger than may be decoded is not read: it might not fit into memory.
        """
        try:
            if picture.shard:
                num_bytes, key = int(picture.num_bytes), picture.name[len(picture.shard) + 1 :]
                _require_size(num_bytes)
                shard = self.root / picture.shard
                return read_listed(shard, key, int(picture.offset), num_bytes)
            path = self.root / picture.name
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise ImageError(ImageReason.UNREADABLE, "is no file", "an image file")
            if path.exists():
                _require_size(path.stat().st_size)
            return read_encoded(path)
        except OSError as error:
            got = error.strerror or str(error)
            raise ImageError(
                ImageReason.UNREADABLE, got, "an image file", what=picture.name
            ) from error
        except ImageError as error:
            raise error.about(picture.name) from error

    def _find_below(self) -> Iterator[Picture]:
        start = len(os.path.join(self.path, ""))  # noqa: PTH118 (of ten million)
        for entry in entries_below(self.path):
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            name = entry.path[start:]
            if suffix in EXTENSIONS and is_file_or_unreadable(entry):
                yield Picture(name)
            elif suffix == SHARD_SUFFIX:
                for key, header_at, size in images_in(Path(entry.path)):
                    yield Picture(f"{name}/{key}", name, str(header_at), str(size))


def _require_size(num_bytes: int) -> None:
    if num_bytes > FILE_LIMITS.max_bytes:
        got, expected = f"{num_bytes} bytes", f"at most {FILE_LIMITS.max_bytes}"
        raise ImageError(ImageReason.TOO_LARGE, got, expected)


def write_names(source: Source, path: Path) -> tuple[str, int]:
    """List `source` into the CSV file `path`, sorted, each name once; return its hash and number.

    They are sorted in parts, so that memory holds few of them. Raises InputError for a source that
    can't be listed or holds no pictures.
    """
    with TemporaryDirectory(dir=path.parent, prefix=".sort-") as folder:
        parts: list[Path] = []
        num_found, found = 0, _told(source)
        while some := list(islice(found, NAMES_AT_A_TIME)):
            parts.append(Path(folder, str(len(parts))))
            _write(parts[-1], sorted(some))
            num_found += len(some)
        if not parts:
            expected = " ".join(sorted(EXTENSIONS))
            raise InputError(source.path, "no image files in it", expected)
        num = _write(path, heapq.merge(*map(read_names, parts)))
    if num < num_found:
        logger.warning("%s: %d repeated names are left out", source.path, num_found - num)
    return file_sha256(path), num


def read_names(path: Path) -> Iterator[Picture]:
    """Yield what `write_names` wrote."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.reader(file):
            yield Picture(*row)


def _told(source: Source) -> Iterator[Picture]:
    """Find pictures, and log how many there are so far every few seconds."""
    last_line, num = time.monotonic(), 0
    for num, picture in enumerate(source.find(), start=1):
        yield picture
        if num % 1000 == 0 and time.monotonic() - last_line >= TELL_EVERY_S:
            last_line = time.monotonic()
            logger.info("list %s: %d files so far", source.path, num)


def _write(path: Path, pictures: Iterable[Picture]) -> int:
    """Write sorted pictures, the first of each name; return how many."""
    num = 0
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        for _, same in groupby(pictures, itemgetter(0)):
            picture = next(same)
            writer.writerow(picture if picture.shard else picture[:1])
            num += 1
    return num
