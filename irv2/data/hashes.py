"""Images identified by content: their hashes, and which may be copies of others."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from irv2.data.dataset import ImageFolder
from irv2.data.shards import shard_state
from irv2.system.cache import cached
from irv2.system.machine import num_cores
from irv2.system.progress import progress


def hash_files(folder: ImageFolder) -> list[str]:
    """Return the hex sha256 of every image's bytes, in the folder's order; raises ImageError."""

    def hash_image(i: int) -> str:
        return hashlib.sha256(folder.read(i)).hexdigest()

    # Hashing and reading release the interpreter lock; some threads wait for the disk.
    with ThreadPoolExecutor(num_cores() + 4) as pool:
        hashes = pool.map(hash_image, range(len(folder)))
        return list(progress(hashes, f"find images in {folder.place}", len(folder), "images"))


def known_hashes(images: ImageFolder) -> set[str]:
    """Return the hex sha256 of each, from the user's cache unless an image has changed."""
    place = str(images.place.resolve())
    return cached(
        "train-hashes",
        {"root": place, "files": list(_states(images))},
        load=partial(msgspec.json.decode, type=set[str]),
        make=lambda: set(hash_files(images)),
        dump=partial(msgspec.json.encode, order="sorted"),
        name=place,
    )


def same_size(images: ImageFolder, others: ImageFolder) -> ImageFolder:
    """Keep those of `images` as large, in bytes, as one of `others`: these may be copies."""
    sizes = {size_bytes for _, size_bytes, _ in _states(others)}
    states = enumerate(_states(images))
    return images.subset([i for i, (_, size_bytes, _) in states if size_bytes in sizes])


def _states(images: ImageFolder) -> Iterator[tuple[str, int, int | str]]:
    """Yield each image's file, its size in bytes, and a state that changes when it is rewritten."""
    if images.spans is not None:
        changed = shard_state(images.root)
        for file, size_bytes in zip(images.files, images.spans[:, 1].tolist(), strict=True):
            yield file, size_bytes, changed
        return
    for i, file in enumerate(images.files):
        status = images.path(i).stat()
        yield file, status.st_size, status.st_mtime_ns
