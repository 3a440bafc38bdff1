"""A bundle's folder appears whole: made beside its place, then renamed."""

import fcntl
import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from irv2.errors import BundleError

_NEW, _OLD, _LOCK = ".tmp", ".old", "lock"


@contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A new folder on the same file system, gone afterwards unless it was renamed.

    First, what killed processes left beside `place` is removed.
    """
    with _holder(place, _NEW) as holder:
        _sweep(place)
        folder = holder / place.name
        folder.mkdir()
        yield folder


def replace_folder(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what was there steps aside first and is then removed.

    Folders can't be exchanged in one portable step: after a crash between the two renames both
    are whole, the old one aside. Raises BundleError where another process publishes there too.
    """
    with _holder(place, _OLD) as holder:
        aside = holder / place.name
        try:
            if place.exists():
                place.rename(aside)
            new.rename(place)
        except BaseException as error:  # a signal too: the old bundle comes back
            if aside.exists() and not place.exists():
                aside.rename(place)
            if isinstance(error, OSError):
                raise BundleError(
                    place, f"another process changed it ({error.strerror})", "one export at a time",
                    "export again",
                ) from error  # fmt: skip
            raise


@contextmanager
def _holder(place: Path, suffix: str) -> Iterator[Path]:
    """A folder of our own beside `place`, with a lock in it for as long as we live."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise BundleError(place, f"can't be written ({error})", way_out="pass --out") from error
    try:
        with (holder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only now it gets a name that is swept.
            holder = holder.rename(holder.with_name(holder.name + suffix))
            yield holder
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Remove folders beside `place` whose lock is free; an old bundle only where there is a new."""
    suffixes = (_NEW, _OLD) if place.exists() else (_NEW,)
    for left in place.parent.glob(f".{glob.escape(place.name)}.*"):
        if left.suffix in suffixes:
            with suppress(OSError), (left / _LOCK).open("r+") as lock:  # it is in use, or gone
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
