"""The user's cache folder: an entry that is missing, damaged or of something else is made again."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec
import platformdirs

from irv2.system.files import nearest, write_atomically
from irv2.system.stop import raise_if_stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")
_is_told = False


class _Entry(msgspec.Struct, frozen=True):
    """The contents of an entry's file; its name alone could be that of any other."""

    key: str
    sha256: str  # of the content
    content: bytes


def cache_folder(*names: str) -> Path:
    """Return the path of the cache, or of a folder in it, which may not exist yet.

    Without a home, or permission to use it, this is a temporary folder, and a notice says so.
    """
    try:
        folder = usual_folder(*names)
    except RuntimeError as error:
        raise_if_stopped()
        return _temporary(str(error)).joinpath(*names)
    if not _is_allowed(folder):
        return _temporary(f"{folder}: no permission").joinpath(*names)
    return folder


def usual_folder(*names: str) -> Path:
    """Return where the cache lies for a user who may use it.

    Raises RuntimeError where there is no HOME, and the user id is not in the list of users.
    """
    return Path(platformdirs.user_cache_dir("irv2"), *names)


def _is_allowed(folder: Path) -> bool:
    """Whether this process may read the folder or, if there is none, make it."""
    if os.access(folder, os.F_OK):
        return not folder.is_dir() or os.access(folder, os.R_OK | os.X_OK)
    return os.access(nearest(folder), os.W_OK | os.X_OK)


def cached(
    kind: str,
    key: object,
    *,
    load: Callable[[bytes], T],
    make: Callable[[], T],
    dump: Callable[[T], bytes],
    name: object = None,
    most_bytes: int | None = None,
) -> T:
    """Return what the cache holds of this kind under `key`, or else make it and keep it there.

    `key` is everything that the content follows from, as plain values; the entry holds it whole.
    `name` (None: the key) names the file, so entries of one name replace each other. `load` raises
    ValueError or MsgspecError for a damaged entry. Beyond `most_bytes` the kind's oldest entries
    are removed. Where the cache can't be used, nothing fails, and one notice says so; an entry that
    can't be read is left as it is.
    """
    text = json.dumps(key)
    file = hashlib.sha256((text if name is None else json.dumps(name)).encode()).hexdigest()
    try:
        path = cache_folder(kind) / f"{file}.msgpack"
    except FileNotFoundError as error:  # nor a temporary one
        _notice(str(error))
        return make()
    if path.is_file():
        try:
            entry = msgspec.msgpack.decode(path.read_bytes(), type=_Entry)
            if _sha256(entry.content) != entry.sha256:
                raise ValueError("its content was changed")
            if entry.key == text:
                return load(entry.content)
            logger.info("%s: the %s of something else, made again", path, kind)
        except OSError as error:  # as of another user, left by sudo
            _notice(f"{path}: can't be read ({error.strerror})")
            return make()
        except (ValueError, msgspec.MsgspecError) as error:
            logger.warning("%s: unreadable %s, made again (%s)", path, kind, error)
    made = make()
    content = dump(made)
    entry = _Entry(text, _sha256(content), content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.msgpack.encode(entry))
        if most_bytes is not None:
            _make_room(path.parent, most_bytes)
    except OSError as error:
        _notice(f"{error.filename}: can't be written ({error.strerror})")
    return made


def _make_room(folder: Path, most_bytes: int) -> None:
    """Remove the oldest entries beyond the limit; the newest stays, whatever its size."""
    entries = sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    size_bytes = 0
    for i, path in enumerate(entries):
        size_bytes += path.stat().st_size
        if i and size_bytes > most_bytes:
            path.unlink()


def _notice(reason: str) -> None:
    """Say once per process that the cache can't be used, and what that costs."""
    global _is_told
    if not _is_told:
        _is_told = True
        logger.warning(
            "cache: %s; indexes, hashes, ranges, compiled models and a checkpoint's answers are "
            "not kept: every start takes the time again; XDG_CACHE_HOME names another place",
            reason,
        )


def _temporary(reason: str) -> Path:
    """Return the temporary cache of this process, and say why there is one."""
    _notice(reason)
    return Path(_temporary_folder().name)


@cache
def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="irv2-cache-")  # removed when the process ends


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
