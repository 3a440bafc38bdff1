"""The folder where all processes of a server count, for prometheus_client's shared files."""

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

PREFIX = "irv2-serve-"
IN_MEMORY = Path("/dev/shm")


class CounterFolder:
    """A folder in memory where possible, locked while its server lives.

    A server that was killed leaves it behind; the next one removes it.
    """

    def __init__(self, root: Path | None = None) -> None:
        root = root or (IN_MEMORY if IN_MEMORY.is_dir() else Path(tempfile.gettempdir()))
        _remove_abandoned(root)
        # Under another name until it is locked, or a server that starts now would remove it.
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=root))
        lock = os.open(made, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.path = made.rename(root / made.name.removeprefix("."))
        self.remove = weakref.finalize(self, _remove, self.path, lock)  # also at exit


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(f"{PREFIX}*"):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # another user's, or just removed
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its server lives
            os.close(lock)
        else:
            _remove(path, lock)
