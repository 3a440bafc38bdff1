"""Shards: a split as tar files of a few hundred megabytes, for disks that dislike small files.

The layout is WebDataset's: KEY.jpg and KEY.cls (the label as text) side by side. Here KEY is
CLASS/NAME, and shards.json holds the names of the classes. Images are read in place, by offset, so
random access works as with a folder.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from irv2.errors import DataError, ImageError, ImageReason
from irv2.images.decode import EXTENSIONS
from irv2.system.progress import Progress

CONTENTS = "shards.json"
LABEL_SUFFIX = ".cls"
BLOCK = 512  # bytes; a tar file ends with two blocks of zeros
_BROKEN = (tarfile.TarError, ValueError, OverflowError, OSError)  # what reading a bad one raises


class Contents(msgspec.Struct, frozen=True):
    """The contents of a split's shards.json."""

    classes: list[str]
    num_images: int


class Span(NamedTuple):
    """The position of an image in its shard, in bytes."""

    offset: int
    size: int


class Member(NamedTuple):
    """An image in a shard; `name` is SHARD.tar/KEY.jpg."""

    name: str
    label: int
    span: Span


def is_sharded(root: Path) -> bool:
    """Whether the split `root` is a folder of shards."""
    return (root / CONTENTS).is_file()


def shard_state(root: Path) -> str:
    """Return a hash that changes when shards come, go or are rewritten."""
    state = hashlib.sha256((root / CONTENTS).read_bytes())
    for path in sorted(root.glob("*.tar")):
        status = path.stat()
        state.update(f"{path.name}/{status.st_size}/{status.st_mtime_ns};".encode())
    return state.hexdigest()


def read_contents(root: Path) -> Contents:
    """Read shards.json; raises DataError if it can't be understood."""
    path = root / CONTENTS
    try:
        return msgspec.json.decode(path.read_bytes(), type=Contents)
    except (UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise DataError(path, str(error), "classes and num_images", "write it again") from error


def scan_shards(root: Path) -> list[Member]:
    """List every image of every shard, in order.

    Raises DataError for a broken, cut off or missing shard, and for an image without a label or
    with one outside the classes of shards.json.
    """
    contents = read_contents(root)
    members: list[Member] = []
    with Progress(f"index {root}", contents.num_images) as bar:
        for path in sorted(root.glob("*.tar")):
            for member in _scan_shard(path):
                if member.label not in range(len(contents.classes)):
                    raise DataError(
                        root / member.name,
                        f"label {member.label}",
                        f"0 to {len(contents.classes) - 1}, the classes of {CONTENTS}",
                    )
                members.append(member)
                bar.advance(1)
    if len(members) != contents.num_images:
        raise DataError(
            root,
            f"{len(members)} images in its shards",
            f"{contents.num_images} by {CONTENTS}",
            "copy the missing shards or write all again with irv2 data shard",
        )
    return members


def read_span(shard: Path, span: Span) -> bytes:
    """Read the bytes of an image; raises ImageError if the shard no longer holds them."""
    try:
        with shard.open("rb", buffering=0) as file:
            encoded = os.pread(file.fileno(), span.size, span.offset)
    except OSError as error:
        problem = error.strerror or str(error)
        raise ImageError(ImageReason.UNREADABLE, problem, "a shard", what=shard) from error
    if len(encoded) < span.size:
        raise ImageError(
            ImageReason.TRUNCATED,
            f"ends after {span.offset + len(encoded)} bytes",
            f"at least {span.offset + span.size}",
            "copy the shard again",
            what=shard,
        )
    return encoded


def images_in(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, header's offset and size of each file in a shard with an image's extension."""
    for member, _ in _files_in(path):
        if os.path.splitext(member.name)[1].lower() in EXTENSIONS:  # noqa: PTH122 (no path)
            yield member.name, member.offset, member.size


def read_listed(shard: Path, name: str, header_at: int, size: int) -> bytes:
    """Read what `images_in` has found; raises ImageError if it is not there any more."""
    try:
        with shard.open("rb", buffering=0) as file:
            file.seek(header_at)
            with tarfile.open(fileobj=file, mode="r:") as members:
                found = members.next()
        if found is None or (found.name, found.size) != (name, size):
            raise tarfile.ReadError
    except (tarfile.TarError, ValueError, OverflowError) as error:
        got, expected = "lies elsewhere in its shard, or no longer", "the shard as it was listed"
        raise ImageError(ImageReason.UNREADABLE, got, expected, what=name) from error
    return read_span(shard, Span(found.offset_data, size))


def _scan_shard(path: Path) -> Iterator[Member]:
    """Yield the images of one shard, each with the label beside it."""
    images: dict[str, tuple[str, Span]] = {}
    labels: dict[str, int] = {}
    for member, shard in _files_in(path):
        key, suffix = os.path.splitext(member.name)  # noqa: PTH122 (a member is no path)
        if suffix == LABEL_SUFFIX:
            labels[key] = _label(path, shard, member)
        else:
            span = Span(member.offset_data, member.size)
            images[key] = (f"{path.name}/{member.name}", span)
    for key, (name, span) in images.items():
        if key not in labels:
            raise DataError(path, f"no {key}{LABEL_SUFFIX} beside {name}", "a label per image")
        yield Member(name, labels[key], span)


def _label(path: Path, shard: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    content = shard.extractfile(member)
    assert content is not None  # it is a file
    try:
        return int(content.read())
    except _BROKEN as error:
        raise _broken(path, error) from error


def _files_in(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield every file in a shard; raises DataError for a broken shard, or one that ends early."""
    end = 0
    try:
        if not path.is_file():  # a pipe would be waited for
            raise tarfile.ReadError("is no file")
        with tarfile.open(path, "r:") as shard:
            for member in filter(tarfile.TarInfo.isfile, shard):
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                yield member, shard
        with path.open("rb") as file:  # tarfile does not notice a missing end
            file.seek(end)
            if file.read(2 * BLOCK) != bytes(2 * BLOCK):
                raise tarfile.ReadError("ends early")
    except _BROKEN as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> DataError:
    expected, way_out = "a whole tar file of images and labels", "copy or write it again"
    return DataError(path, str(error), expected, way_out)
