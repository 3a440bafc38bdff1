"""What weakens evaluation images as evidence: classes without any, and images of the training.

A checkpoint knows nothing of the files it saw, so DIR/val is compared with the DIR/train beside
it: by size first, then by hash. What was hashed is kept in the user's cache.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from convert.reference import Reference
from irv2.bundle import file_sha256, write_atomically
from irv2.decode import EXTENSIONS
from irv2.progress import progress

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
    train = data / "train"
    if not train.is_dir():
        return ""
    candidates = _same_size(train, data / "val")
    looked_at = candidates[:MAX_HASHED]
    is_partial = len(looked_at) < len(candidates)
    where = f" ({len(looked_at)} of {len(candidates)} files looked at)" if is_partial else ""
    trained_on = _hashes(looked_at, train)
    num = sum(sha256 in trained_on for sha256 in reference.sha256)
    if not num:
        return f"No evaluation image was found in train/{where}." if is_partial else ""
    return (
        f"{num} of {len(reference)} evaluation images are in train/ too, byte by byte{where}: "
        "errors on them say little about new images."
    )


def _same_size(train: Path, val: Path) -> list[os.DirEntry[str]]:
    """The files of `train` with the size of some file of `val`, in a fixed order."""
    sizes = {entry.stat().st_size for entry in _files(val)}
    found = [entry for entry in _files(train) if entry.stat().st_size in sizes]
    return sorted(found, key=lambda entry: entry.path)


def _files(root: Path) -> Iterator[os.DirEntry[str]]:
    for folder in root.iterdir():
        if folder.is_dir():
            with os.scandir(folder) as entries:
                yield from (e for e in entries if Path(e.name).suffix.lower() in EXTENSIONS)


def _hashes(entries: list[os.DirEntry[str]], train: Path) -> set[str]:
    """The sha256 of each, from the cache where none of them has changed."""
    states = [(entry.path, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries]
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    cache = Path(platformdirs.user_cache_dir("irv2")) / "train-hashes" / f"{key}.txt"
    if cache.is_file():
        return set(cache.read_text().split())
    with ThreadPoolExecutor() as pool:
        hashes = set(
            progress(
                pool.map(lambda entry: file_sha256(Path(entry.path)), entries),
                f"compare with {train}", len(entries), "files",
            )
        )  # fmt: skip
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, "\n".join(sorted(hashes)).encode())
    except OSError as error:  # a read-only home: hashed again the next time
        logger.warning("%s: the hashes can't be kept (%s)", cache, error.strerror)
    return hashes
