"""Pictures read and hashed."""

import hashlib
from dataclasses import dataclass

from irv2.batch.source import Picture, Source
from irv2.errors import ImageError


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture's bytes and their sha256, or why it can't be read."""

    name: str
    content: bytes = b""
    sha256: str = ""
    error: ImageError | None = None


def load(source: Source, picture: Picture) -> Encoded:
    """Read and hash a picture."""
    try:
        content = source.read(picture)
    except ImageError as error:
        return Encoded(picture.name, error=untraced(error, picture.name))
    return Encoded(picture.name, content, hashlib.sha256(content).hexdigest())


def untraced(error: ImageError, name: str) -> ImageError:
    """Return the error about `name` without its traceback, whose frames hold pictures and more.

    Thousands of rows wait in memory at a time.
    """
    return error.about(name)
