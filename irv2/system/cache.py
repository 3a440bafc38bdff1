"""The user's cache folder: an entry that is missing, damaged or of something else is made again."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import platformdirs

from irv2.system.files import write_atomically
from irv2.system.stop import raise_if_stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")
_temporary_folders: list["tempfile.TemporaryDirectory[str]"] = []  # removed when the process ends


class _Entry(msgspec.Struct, frozen=True):
    """The contents of an entry's file; its name alone could be that of any other."""

    key: str
    sha256: str  # of the content
    content: bytes


def cache_folder(*names: str) -> Path:
    """Return the path of the cache, or of a folder in it, which may not exist yet.

    Without a home, or permission to use it, this is a temporary folder; a log line says so.
    """
    try:
        folder = Path(platformdirs.user_cache_dir("irv2"), *names)
    except RuntimeError as error:  # no HOME, and the user id is not in the list of users
        raise_if_stopped()
        return Path(_temporary(str(error)).name, *names)
    if not _is_allowed(folder):
        return Path(_temporary(f"{folder}: no permission").name, *names)
    return folder


def _is_allowed(folder: Path) -> bool:
    """Whether this process may read the folder or, if there is none, make it."""
    if os.access(folder, os.F_OK):
        return not folder.is_dir() or os.access(folder, os.R_OK | os.X_OK)
    there = next(parent for parent in folder.absolute().parents if os.access(parent, os.F_OK))
    return os.access(there, os.W_OK | os.X_OK)


def cached(
    kind: str,
    key: object,
    *,
    load: Callable[[bytes], T],
    make: Callable[[], T],
    dump: Callable[[T], bytes],
    name: object = None,
) -> T:
    """Return what the cache holds of this kind under `key`, or else make it and keep it there.

    `key` is everything that the content follows from, as plain values; the entry holds it whole.
    `name` (None: the key) names the file, so entries of one name replace each other. `load` raises
    ValueError or MsgspecError for a damaged entry. If the cache can't be written, a log line says
    so; if an entry can't be read, another, and it is left as it is.
    """
    text = json.dumps(key)
    file = hashlib.sha256((text if name is None else json.dumps(name)).encode()).hexdigest()
    path = cache_folder(kind) / f"{file}.msgpack"
    if path.is_file():
        try:
            entry = msgspec.msgpack.decode(path.read_bytes(), type=_Entry)
            if _sha256(entry.content) != entry.sha256:
                raise ValueError("its content was changed")
            if entry.key == text:
                return load(entry.content)
            logger.info("%s: the %s of something else, made again", path, kind)
        except OSError as error:  # as of another user, left by sudo
            logger.warning("%s: the %s can't be read (%s)", path, kind, error.strerror)
            return make()
        except (ValueError, msgspec.MsgspecError) as error:
            logger.warning("%s: unreadable %s, made again (%s)", path, kind, error)
    made = make()
    content = dump(made)
    entry = _Entry(text, _sha256(content), content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.msgpack.encode(entry))
    except OSError as error:
        logger.warning("%s: the %s can't be kept (%s)", path, kind, error.strerror)
    return made


def _temporary(reason: str) -> "tempfile.TemporaryDirectory[str]":
    """Return the one temporary cache of this process; the first time, say why."""
    if not _temporary_folders:
        _temporary_folders.append(tempfile.TemporaryDirectory(prefix="irv2-cache-"))
        logger.warning("cache: %s; for this process it is %s", reason, _temporary_folders[0].name)
    return _temporary_folders[0]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
