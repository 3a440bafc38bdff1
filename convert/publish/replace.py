"""A bundle's folder appears whole: made beside its place, then renamed."""

import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from irv2.errors import BundleError, Irv2Error
from irv2.manifest import MANIFEST
from irv2.system.child import tell_parent
from irv2.system.files import left_beside, try_lock

logger = logging.getLogger(__name__)

_NEW, _OLD, _LOCK = ".tmp", ".old", "lock"
# What a rename meets where another process was faster.
_RACES = (errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY)


def require_replaceable(place: Path) -> None:
    """Raise BundleError if what is at `place` is not a bundle, or can't be renamed."""
    if not place.exists() and not place.is_symlink():
        return
    is_ours = (place / MANIFEST).is_file() or (place.is_dir() and not any(place.iterdir()))
    if not is_ours:
        raise BundleError(
            place,
            "is there and is no bundle",
            "a new place, or a bundle to replace",
            "pass another --out",
        )
    if place.is_mount():
        raise BundleError(
            place, "is a mount point, which can't be replaced", "a folder", "name one inside it"
        )
    # What moves to another folder is written to: its `..`.
    if not os.access(place, os.W_OK) or not os.access(place.parent, os.W_OK):
        raise BundleError(
            place,
            "can't be replaced: it or the folder around it is not writable",
            "a folder that can be renamed",
            "name a place that you may write to",
        )


def with_own_name(place: Path) -> Path:
    """Return `place`, or the folder that `.` or `..` stands for: only a name has neighbours."""
    return place.resolve() if place.name in ("", "..") else place


@contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A new folder on the same file system, gone afterwards unless it was renamed.

    What killed processes left beside `place` is removed first, or put back. Errors that come out
    name `place`, not this folder, which is gone by then.
    """
    with _holder(place, _NEW) as holder:
        folder = holder / place.name
        folder.mkdir()
        tell_parent(holder, folder, place)
        _sweep(place)
        try:
            yield folder
        except (Irv2Error, OSError) as error:
            for name, value in _texts_of(error):
                setattr(error, name, value.replace(str(folder), str(place)))
            raise


def replace_folder(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what was there steps aside first and is then removed.

    Folders can't be exchanged in one portable step: after a crash between the two renames both
    are whole, the old one aside. Raises BundleError if that fails, as it does when another
    process publishes there too.
    """
    with _holder(place, _OLD) as holder:
        aside = holder / place.name
        try:
            if place.exists():
                place.rename(aside)
            new.rename(place)
        except BaseException as error:  # a signal too: the old bundle comes back
            if aside.exists() and not place.exists():
                _put_back(aside, place)
            if not isinstance(error, OSError):
                raise
            if error.errno not in _RACES:
                got = f"can't be replaced ({error.strerror})"
                raise BundleError(place, got, way_out="name another place") from error
            raise BundleError(
                place,
                f"another process changed it ({error.strerror})",
                "one export at a time",
                "export again",
            ) from error


def _put_back(aside: Path, place: Path) -> None:
    """Rename the old bundle back, unless another process has published its own meanwhile."""
    try:
        aside.rename(place)
    except OSError as error:
        if error.errno not in _RACES:
            raise


def _texts_of(error: Irv2Error | OSError) -> list[tuple[str, str]]:
    """The attributes of which its line is made."""
    names = ("what", "got", "expected", "way_out", "filename")
    return [(name, str(value)) for name in names if (value := getattr(error, name, None))]


@contextmanager
def _holder(place: Path, suffix: str) -> Iterator[Path]:
    """A folder of our own beside `place`, with a lock in it that this process holds."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise BundleError(place, f"can't be written ({error})", way_out="pass --out") from error
    try:
        with (holder / _LOCK).open("w") as lock:
            try_lock(lock, fcntl.flock)
            # Only now does it get a name that is swept.
            holder = holder.rename(holder.with_name(holder.name + suffix))
            yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove unlocked folders beside `place`; put an old bundle back if no new one came.

    Where there are no locks, any of them may be in use.
    """
    for left in [*left_beside(place, _NEW), *left_beside(place, _OLD)]:
        with suppress(OSError), (left / _LOCK).open("r+") as lock:  # it may be gone
            if not try_lock(lock, fcntl.flock, without_locks=False):
                continue
            if left.suffix == _OLD and not place.exists():
                (left / place.name).rename(place)
                logger.warning("%s: was left aside by a crash and is back in its place", place)
            shutil.rmtree(left, ignore_errors=True)
