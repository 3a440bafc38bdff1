"""The user's cache folder: an entry that is missing, damaged or could not be kept is made anew."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import platformdirs

from irv2.system.files import write_atomically

logger = logging.getLogger(__name__)

T = TypeVar("T")


def cache_folder(*names: str) -> Path:
    """The cache, or a folder in it; perhaps not there yet."""
    return Path(platformdirs.user_cache_dir("irv2"), *names)


def cached(
    path: Path,
    what: str,
    *,
    load: Callable[[Path], T | None],
    make: Callable[[], T],
    dump: Callable[[T], bytes],
) -> T:
    """Return what `path` holds, or what `make` gives, which is then kept there.

    `load` reads an entry: it gives None if the entry is out of date, and raises ValueError or
    MsgspecError if it is damaged. A home that is read-only or full is worth a line about `what`.
    """
    if path.is_file():
        try:
            found = load(path)
        except (ValueError, msgspec.MsgspecError) as error:
            logger.warning("%s: unreadable %s, made anew (%s)", path, what, error)
        else:
            if found is not None:
                return found
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump(made))
    except OSError as error:
        logger.warning("%s: the %s can't be kept (%s)", path, what, error.strerror)
    return made
