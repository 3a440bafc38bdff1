"""What weakens evaluation images as evidence: classes without any, and images of the training.

A checkpoint knows nothing of the files it saw, so DIR/val is compared with the DIR/train beside
it: by size first, then by hash. What was hashed is kept in the user's cache.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from irv2.convert.gate.reference import Reference, hash_files
from irv2.data.dataset import ImageFolder, open_split
from irv2.data.shards import is_sharded, shard_state
from irv2.errors import InputError
from irv2.images.decode import EXTENSIONS
from irv2.system.cache import cache_folder, keep

logger = logging.getLogger(__name__)

# Of ImageNet's 1.3 million training files about this many share a size with one of 2000
# evaluation images; reading them takes a few minutes, once.
MAX_HASHED = 100_000


def evidence_remarks(reference: Reference, classes: list[str], data: Path) -> list[str]:
    """What a reader of the verdict has to know of the images in `data`/val; logged too."""
    remarks = [coverage_remark(reference, classes), leakage_remark(reference, data)]
    found = [remark for remark in remarks if remark]
    for remark in found:
        logger.warning("notice: %s", remark)
    return found


def coverage_remark(reference: Reference, classes: list[str]) -> str:
    """Said where classes of the network have no evaluation image; empty otherwise."""
    missing = sorted(set(range(len(classes))) - set(reference.labels.tolist()))
    if not missing:
        return ""
    named = ", ".join(classes[i] for i in missing[:5]) + (", ..." if len(missing) > 5 else "")
    return (
        f"{len(missing)} of {len(classes)} classes have no evaluation image ({named}): "
        "nothing is known of them."
    )


def leakage_remark(reference: Reference, data: Path) -> str:
    """Said where images of the evaluation lie in `data`/train too; empty otherwise."""
    if not (data / "train").is_dir():
        return ""
    try:
        candidates = same_size(_list(data / "train"), _list(data / "val"))
        looked_at = candidates.subset(range(min(len(candidates), MAX_HASHED)))
        trained_on = _hashes(looked_at)
    except (InputError, OSError) as error:  # the verdict stands without it
        return f"Evaluation images were not looked for in train/ ({error})."
    is_partial = len(looked_at) < len(candidates)
    where = f" ({len(looked_at)} of {len(candidates)} files looked at)" if is_partial else ""
    num = sum(sha256 in trained_on for sha256 in reference.sha256)
    if not num:
        return f"No evaluation image was found in train/{where}." if is_partial else ""
    return (
        f"{num} of {len(reference)} evaluation images are in train/ too, byte by byte{where}: "
        "errors on them say little about new images."
    )


def same_size(images: ImageFolder, others: ImageFolder) -> ImageFolder:
    """Those of `images` that have as many bytes as one of `others`, and so may be copies."""
    sizes = {size_bytes for _, size_bytes, _ in _states(others)}
    states = enumerate(_states(images))
    return images.subset([i for i, (_, size_bytes, _) in states if size_bytes in sizes])


def _list(split: Path) -> ImageFolder:
    """Every image of a split, unread: of a million files only those of some sizes matter."""
    if is_sharded(split):
        return open_split(split.parent, split.name)
    files = sorted(
        f"{folder.name}/{path.name}"
        for folder in split.iterdir()
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS
    )
    return ImageFolder(split, (), tuple(files), np.full(len(files), -1, np.int64))


def _states(images: ImageFolder) -> Iterator[tuple[str, int, int | str]]:
    """Of each image its file, its size in bytes, and what changes when it is written anew."""
    if images.spans is not None:
        changed = shard_state(images.root)
        for file, size_bytes in zip(images.files, images.spans[:, 1].tolist(), strict=True):
            yield file, size_bytes, changed
        return
    for i, file in enumerate(images.files):
        status = images.path(i).stat()
        yield file, status.st_size, status.st_mtime_ns


def _hashes(images: ImageFolder) -> set[str]:
    """The sha256 of each, from the cache where none of them has changed."""
    root = str(images.root.resolve())
    states = [root, *_states(images)]
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    name = hashlib.sha256(root.encode()).hexdigest()  # one file for each folder
    cache = cache_folder("train-hashes") / f"{name}.txt"
    kept = cache.read_text(errors="replace").split() if cache.is_file() else []
    if kept[:1] == [key]:
        return set(kept[1:])
    hashes = set(hash_files(images))
    keep(cache, "\n".join([key, *sorted(hashes)]).encode(), "the hashes")
    return hashes
