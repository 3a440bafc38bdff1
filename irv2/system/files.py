"""Files: whole or not at all, hashes, locks, no room, folders that can't be read."""

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

from irv2.errors import InputError, Irv2Error

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GO_ON = "free some; the same command goes on from what there is"
START_AGAIN = "free some; the same command starts again"


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write bytes, or let a function write, beside `path`; then rename over it.

    After a crash at any moment `path` is the old file or the new one, on disk (fsync). A link is
    replaced, and what it leads to stays as it is; a device or a pipe is written to. Raises OSError,
    which names `path` however full the disk.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            _write(path, content)
            return
        _write(beside, content)
        _fsync(beside)
        beside.replace(path)
        _fsync(path.parent)
    except OSError as error:
        if error.filename in (None, str(beside)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # renamed by now, or never written
            beside.unlink()


def _write(path: Path, content: bytes | Callable[[Path], None]) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(file: IO[str]) -> bool:
    """Lock an open, writable file; False where another process holds the lock.

    It ends with the process, however that ends, and processes forked from it do not inherit it. A
    file system that knows no locks (some network disks) is named, and the file taken as locked.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        logger.warning(
            "%s: can't be locked (%s); see to it that only one uses it", file.name, error.strerror
        )
    return True


@contextmanager
def explain_full_disk(path: Path, way_out: str = GO_ON) -> Iterator[None]:
    """Around the writing of `path`: raises Irv2Error where there is no room for it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch wraps it
        if not isinstance(cause, OSError) or cause.errno not in NO_ROOM:
            raise
        raise Irv2Error(
            path, f"can't be written ({cause.strerror})", "free space", way_out
        ) from error


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in `folder` and those below it; raises InputError for one that can't be read."""
    for place, _, names in os.walk(folder, onerror=_refuse):
        yield from (Path(place, name) for name in names)


def _refuse(error: OSError) -> NoReturn:
    got = error.strerror or "can't be read"
    raise InputError(error.filename, got, "a folder that can be read") from error


def check_folder_of(out: Path) -> None:
    """Raises InputError where `out` is to be written and the folder for it is missing."""
    if not out.absolute().parent.is_dir():
        raise InputError(out, "no such folder", "an existing one", f"mkdir -p {out.parent}")
