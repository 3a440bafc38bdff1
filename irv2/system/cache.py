"""The user's cache folder: an entry that is missing, outdated or damaged is made again."""

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
    """Return the path of the cache, or of a folder in it, which may not exist yet."""
    return Path(platformdirs.user_cache_dir("irv2"), *names)


def cached(
    path: Path,
    what: str,
    *,
    load: Callable[[Path], T | None],
    make: Callable[[], T],
    dump: Callable[[T], bytes],
) -> T:
    """Return what `path` holds, or else what `make` returns, which is then stored there.

    `load` reads an entry: it returns None if the entry is out of date, and raises ValueError or
    MsgspecError if it is damaged. If the cache can't be written, a log line about `what` says so.
    """
    if path.is_file():
        try:
            found = load(path)
        except (ValueError, msgspec.MsgspecError) as error:
            logger.warning("%s: unreadable %s, made again (%s)", path, what, error)
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
