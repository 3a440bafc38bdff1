"""The user's cache folder: what it holds is made anew where it is missing, damaged or not kept."""

import logging
from collections.abc import Callable
from pathlib import Path

import platformdirs

from irv2.system.files import write_atomically

logger = logging.getLogger(__name__)


def cache_folder(*names: str) -> Path:
    """The cache, or a folder in it; perhaps not there yet."""
    return Path(platformdirs.user_cache_dir("irv2"), *names)


def keep(path: Path, content: bytes | Callable[[Path], None], what: str) -> bool:
    """Write an entry; False, and a line about `what`, where the home is read-only or full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        logger.warning("%s: %s can't be kept (%s)", path, what, error.strerror)
        return False
    return True
