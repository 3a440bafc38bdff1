"""A bundle's folder appears whole: made beside its place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from irv2.errors import BundleError


@contextmanager
def folder_beside(place: Path) -> Iterator[Path]:
    """A new folder on the same file system, gone afterwards unless it was renamed."""
    folder = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BundleError(place, f"can't be written ({error})", way_out="pass --out") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what was there steps aside first and is then removed.

    Folders can't be exchanged in one portable step: after a crash between the two renames both
    are whole, the old one under its name aside.
    """
    aside = place.with_name(f".{place.name}.{os.getpid()}.old")
    try:
        if place.exists():
            place.rename(aside)
        new.rename(place)
    except BaseException:  # a signal too: the old bundle comes back
        if aside.exists() and not place.exists():
            aside.rename(place)
        raise
    shutil.rmtree(aside, ignore_errors=True)
