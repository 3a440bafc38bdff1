"""Files that may change under a running server: certificates; tokens.py looks for itself."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from irv2.errors import Irv2Error

logger = logging.getLogger(__name__)
T = TypeVar("T")
Stamp = tuple[int, int, int] | None


class Watched(Generic[T]):
    """What `load` made of some files; made anew when one of them was changed.

    They are looked at when the value is asked for, so nothing polls. A change that can't be loaded
    (one of a pair of files is written before the other) is one log line, and the old value stays.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[], T]) -> None:
        """Load for the first time; raises what `load` raises."""
        self._paths, self._load = paths, load
        self._stamps = list(map(stamp, paths))
        self._value = load()

    def current(self) -> T:
        """The value for the files as they are now, or as they last made sense."""
        found = list(map(stamp, self._paths))
        if found != self._stamps:
            self._stamps = found
            try:
                self._value = self._load()
                logger.info("file_reloaded file=%s", self._paths[0])
            except Irv2Error as error:
                logger.error("file_not_reloaded error=%s", error)
        return self._value


def stamp(path: Path) -> Stamp:
    """Something that differs after the file was written or replaced; None where there is none."""
    try:
        found = path.stat()  # of what a link leads to: that is how Kubernetes swaps secrets
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
