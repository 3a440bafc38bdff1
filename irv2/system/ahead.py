"""Work that threads do ahead of whoever takes its results, which come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(pool: Executor, work: Callable[[T], R], items: Iterable[T], num: int) -> Iterator[R]:
    """Yield `work(item)` in order, up to `num` items ahead of the consumer."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) > num:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
