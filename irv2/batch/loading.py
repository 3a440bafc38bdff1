"""Pictures read and hashed ahead, in threads, and given in order."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

from irv2.batch.source import Picture, Source
from irv2.errors import ImageError

T = TypeVar("T")
R = TypeVar("R")


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


def map_ahead(pool: Executor, work: Callable[[T], R], items: Iterable[T], num: int) -> Iterator[R]:
    """Yield `work(item)` in order, up to `num` items ahead of the consumer."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) > num:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
