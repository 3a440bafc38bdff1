"""`irv2 data shard`: an image folder or a list written as shards (irv2/data/shards.py)."""

import io
import logging
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import msgspec

from irv2.data.dataset import LAYOUT, BadImages, ImageFolder, open_split, splits_of
from irv2.data.shards import CONTENTS, LABEL_SUFFIX, Contents
from irv2.errors import DataError, ImageError, Irv2Error
from irv2.images.decode import FILE_LIMITS, decode
from irv2.system.ahead import map_ahead
from irv2.system.files import new_folder
from irv2.system.machine import num_cores
from irv2.system.progress import Progress

logger = logging.getLogger(__name__)


def write_shards(source: Path, out: Path, shard_bytes: int, bad_images: BadImages = "error") -> int:
    """Write `source`'s splits train, val and test as shards into the new folder `out`.

    Image i of a split stays image i, so that folder and shards train the same. Every image is
    decoded first: what is in a shard can't be replaced. Those that can't be decoded are all named,
    and left out if `bad_images` is skip. `out` appears whole or not at all. Returns the number of
    images. Raises DataError if `source` is no data folder or `out` exists, and Irv2Error for
    images that can't be decoded.
    """
    if out.exists():
        raise DataError(out, "already exists", "a new folder", "pass another OUT")
    splits = dict(_open_splits(source, bad_images))
    num_images, errors = 0, list[ImageError]()
    total = sum(map(len, splits.values()))
    with (
        new_folder(out, lambda: sum(split.num_bytes() for split in splits.values())) as folder,
        Progress(f"write {out}", total) as bar,
    ):
        for name, split in splits.items():
            num_written, bad = _write_split(split, folder / name, shard_bytes, bar)
            num_images += num_written
            errors += bad
        for error in errors:
            logger.warning("%s%s", "left out: " if bad_images == "skip" else "", error)
        if errors and bad_images == "error":
            got = f"{len(errors)} images can't be read, as listed above"
            raise Irv2Error(source, got, way_out="replace them or pass --bad-images skip")
    return num_images


def _open_splits(source: Path, bad_images: BadImages) -> Iterator[tuple[str, ImageFolder]]:
    names = splits_of(source)
    if not names:
        raise DataError(source, "neither train/ nor val/ in it", LAYOUT)
    classes = None
    for name in names:
        split = open_split(source, name, classes, bad_images)
        classes = split.classes
        yield name, split


def _write_split(
    split: ImageFolder, out: Path, shard_bytes: int, bar: Progress
) -> tuple[int, list[ImageError]]:
    """Write shards of about `shard_bytes`, and shards.json; return how many images, and errors."""
    out.mkdir(parents=True)
    written: set[str] = set()
    errors = []
    with ExitStack() as open_shard:
        shard, num_shards = None, 0
        for i, encoded in enumerate(_checked(split)):
            bar.advance(1)
            if isinstance(encoded, ImageError):
                errors.append(encoded)
                continue
            if shard is None or shard.offset >= shard_bytes:
                open_shard.close()
                path = out / f"{num_shards:06d}.tar"
                shard = open_shard.enter_context(tarfile.open(path, "w", format=tarfile.GNU_FORMAT))
                num_shards += 1
            key, suffix = _member_name(split, i)
            if key in written:
                raise DataError(split.path(i), "another image has this name", way_out="rename it")
            written.add(key)
            _add(shard, f"{key}{suffix}", encoded)
            _add(shard, f"{key}{LABEL_SUFFIX}", str(split.labels[i]).encode())
    contents = Contents(list(split.classes), len(written))
    (out / CONTENTS).write_bytes(msgspec.json.format(msgspec.json.encode(contents)))
    return len(written), errors


def _checked(split: ImageFolder) -> Iterator[bytes | ImageError]:
    """Yield every image's bytes, in order, or why it can't be decoded; uses all cores."""

    def check(i: int) -> bytes | ImageError:
        try:
            encoded = split.read(i)
            decode(encoded, FILE_LIMITS)
        except ImageError as error:
            return error.about(split.path(i))
        return encoded

    num_threads = num_cores()
    with ThreadPoolExecutor(num_threads) as pool:  # the libraries release the interpreter lock
        try:
            yield from map_ahead(pool, check, range(len(split)), 4 * num_threads)
        finally:
            pool.shutdown(cancel_futures=True)


def _member_name(split: ImageFolder, i: int) -> tuple[str, str]:
    """Return KEY and suffix; to WebDataset's readers a suffix begins at the first dot."""
    path = PurePosixPath(split.files[i])
    if split.list_path is not None:  # its files may lie anywhere, and share a name
        path = PurePosixPath(split.classes[split.labels[i]], f"{i:08d}_{path.name}")
    return str(path.with_name(path.stem.replace(".", "_"))), path.suffix.lower()


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner, no time: the same images give the same shards
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))
