"""Files: atomic writes, hashes, locks, full disks, files and folders that can't be read."""

import errno
import fcntl
import glob
import hashlib
import logging
import os
import resource
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, NoReturn

from irv2.errors import ImageError, ImageReason, InputError, Irv2Error
from irv2.system.stop import raise_if_stopped

logger = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GO_ON = "the same command goes on where this one stopped"
START_AGAIN = "the same command starts again"
_OTHER_DISK = "name another disk (--out, or TMPDIR for temporary files)"
# What fsync says of folders on SMB, on disks shared with virtual machines, on some FUSE disks.
_NO_FSYNC = (
    errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOSYS,
    errno.EOPNOTSUPP,
)  # fmt: skip
HASH_BLOCK_BYTES = 2**20
_noticed: set[str] = set()


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file; show how far it is where that takes long."""
    with path.open("rb") as file:
        return open_file_sha256(file)


def open_file_sha256(file: BinaryIO) -> str:
    """Return the hex sha256 of an open file as of its position."""
    from irv2.system.progress import DELAY_S, ByteProgress  # only here: most need no bar

    num_bytes = os.fstat(file.fileno()).st_size
    found = hashlib.sha256()
    with ByteProgress(f"hash {file.name}", num_bytes, delay_s=DELAY_S) as bar:
        while block := file.read(HASH_BLOCK_BYTES):
            found.update(block)
            bar.count(len(block))
    return found.hexdigest()


def nearest(path: Path) -> Path:
    """Return the path itself, or else the innermost folder around it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if os.access(each, os.F_OK))


def read_encoded(path: str | Path) -> bytes:
    """Read the bytes of an image file; raises ImageError if it can't be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError for names that no file can have
        got = getattr(error, "strerror", None) or str(error)
        raise ImageError(ImageReason.UNREADABLE, got, "an image file", what=path) from error


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write bytes, or let a function write, to a file beside `path`; then rename it to `path`.

    After a crash at any moment `path` is the old file or the new one, on disk (fsync). A link is
    replaced and its target stays as it is; a device or a pipe is written to. Raises OSError, which
    always names `path`.
    """
    temporary = _temporary(path)
    try:
        if path.exists() and not path.is_file():
            _write(path, content)
            return
        try:
            _write(temporary, content)
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            with suppress(OSError):  # renamed by now, or never written
                temporary.unlink()
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        if error.errno in NO_ROOM and isinstance(content, bytes):
            error.strerror = _measured(error, path.parent, len(content))
        raise


def _temporary(path: Path) -> Path:
    """Name a new file beside `path`; containers on one disk may all have the same process id."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def left_beside(path: Path, ending: str = ".tmp") -> list[Path]:
    """Return what programs left beside `path` under its temporary names, `.NAME.RANDOM` + `ending`.

    RANDOM has no dot: `.x.b.1f.tmp` belongs to `x.b` and not to `x`.
    """
    start = f".{path.name}."
    found = path.parent.glob(f"{glob.escape(start)}*{ending}")
    return [each for each in found if "." not in each.name[len(start) : -len(ending)]]


def _write(path: Path, content: bytes | Callable[[Path], None]) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)


def no_room(what: object, error: OSError, then: str = "") -> Irv2Error:
    """Build the error for one of NO_ROOM; `then` says what the same command will do.

    The disk may be full, the user's quota be used up, or a file be larger than it may be.
    """
    if error.errno != errno.EFBIG:
        expected = "free space"
        way_out = f"free some; {then}" if then else f"free some, or {_OTHER_DISK}"
    elif _file_limit() is not None:
        expected = "a limit that allows files of this size"
        way_out = f"raise ulimit -f; {then}" if then else "raise ulimit -f"
    else:
        expected, way_out = "a file system for files of this size", _OTHER_DISK
    return Irv2Error(what, f"can't be written ({error.strerror})", expected, way_out)


def _measured(error: OSError, folder: Path, num_bytes: int) -> str:
    """Add to what the system says how much was to be written, and how much may be."""
    line = f"{error.strerror}: {num_bytes / 1e6:.1f} MB to write"
    if error.errno == errno.EFBIG and (limit := _file_limit()) is not None:
        return f"{line}, {limit / 1e6:.1f} MB by ulimit -f"
    if error.errno == errno.ENOSPC:
        return f"{line}, {shutil.disk_usage(folder).free / 1e6:.1f} MB free"
    return line  # a quota can be asked for in another way on every file system


def _file_limit() -> int | None:
    """Return how large a file may be, as `ulimit -f` sets it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def _fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; some disks can't promise that."""
    # SMB servers flush only what is open for writing, which a folder never is.
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    try:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
        _notice(
            "fsync", "%s: can't be synced (%s); a power failure may lose what was written last",
            path, error.strerror,
        )  # fmt: skip


def try_lock(
    file: IO[str],
    lock: Callable[[IO[str], int], object] = fcntl.lockf,
    *,
    without_locks: bool = True,
) -> bool:
    """Lock an open, writable file; return False if someone else holds the lock.

    The lock ends with the process, however that ends. `lockf` keeps out other processes and is not
    inherited by forked ones; `flock` also keeps out whoever opened the file apart in this process.
    On a file system without locks (some network disks), log a notice and return `without_locks`.
    """
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        _notice(
            "locks", "%s: can't be locked (%s); make sure that only one program at a time writes "
            "there; what a killed one left stays", file.name, error.strerror,
        )  # fmt: skip
        return without_locks
    return True


def _notice(about: str, line: str, *args: object) -> None:
    """Log what is the matter with a disk, once per process: it holds for every file there."""
    if about not in _noticed:
        _noticed.add(about)
        logger.warning(line, *args)


def require_new_folder(out: Path) -> None:
    """Raise InputError unless `out` is not there yet, or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "is there and not empty", "a new folder")


@contextmanager
def new_folder(out: Path, num_bytes: Callable[[], int | None]) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out`, whole or not at all, after the block.

    `out` may be an empty folder. Raises Irv2Error if the disk is full, which says how many bytes
    were to be written, if that is known; and InputError if another process has filled `out`
    meanwhile.
    """
    out = out.absolute()  # gives "." a name
    temporary = _temporary(out)
    try:
        with explain_full_disk(out, START_AGAIN, num_bytes):
            try:
                yield temporary
            except BaseException:  # its room is free again for the next try
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        try:
            if out.is_dir():  # a shell may be in it, and would be left in a removed folder
                if any(out.iterdir()):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
                for part in temporary.iterdir():
                    part.replace(out / part.name)
            else:
                temporary.replace(out)
        except OSError as error:
            raise InputError(out, str(error.strerror), "a new folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def explain_full_disk(
    path: Path, then: str = GO_ON, num_bytes: Callable[[], int | None] = lambda: None
) -> Iterator[None]:
    """Around the writing of `path`: raise Irv2Error (`no_room`) if there is no room for it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise_if_stopped()
        cause = error if isinstance(error, OSError) else error.__context__  # torch wraps it
        if not isinstance(cause, OSError) or cause.errno not in NO_ROOM:
            raise
        if (size := num_bytes()) is not None:
            cause.strerror = _measured(cause, path.parent, size)
        raise no_room(path, cause, then) from error


def is_hidden(name: str) -> bool:
    """Whether a name is that of a hidden file or folder, or of what macOS adds to a ZIP."""
    return name.startswith(".") or name == "__MACOSX"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder in TMPDIR, gone afterwards; raises Irv2Error if the disk there is full."""
    place = Path(tempfile.gettempdir())
    with explain_full_disk(place, ""), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below `folder` that is not hidden, nor below a hidden folder.

    Raises InputError for a folder that can't be read.
    """
    yield from map(Path, entries_below(folder))


def entries_below(folder: str | Path) -> Iterator["os.DirEntry[str]"]:
    """Yield what `files_below` does in the same order, without holding a folder's names in memory.

    Folders inside wait until the files beside them were yielded; links to folders are left out.
    """
    folders = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not _leads_to_folder(entry):
                    yield entry
    except OSError as error:
        _refuse(error)
    for path in folders:
        yield from entries_below(path)


def is_file_or_unreadable(file: "os.DirEntry[str] | Path") -> bool:
    """Whether reading `file` ends, or fails at once as that of a broken link; not of a pipe."""
    try:
        return file.is_file() or not Path(file).exists()
    except OSError:
        return True


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # one we may not look at, or a circle
        return False


def _refuse(error: OSError) -> NoReturn:
    got = error.strerror or "can't be read"
    raise InputError(error.filename, got, "a folder that can be read") from error


def check_folder_of(out: Path) -> None:
    """Raise InputError if the folder in which `out` is to be written does not exist."""
    if not out.absolute().parent.is_dir():
        raise InputError(out, "no such folder", "an existing one", f"mkdir -p {out.parent}")
