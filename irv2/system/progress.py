"""Progress of long work: a bar on a terminal, or else a plain line every few seconds."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")
logger = logging.getLogger(__name__)

LINE_EVERY_S = 5.0
DELAY_S = 2.0  # before a bar appears for what seldom takes long
_MB = 10**6


def progress(
    items: Iterable[T], title: str, total: int, unit: str, delay_s: float = 0
) -> Iterator[T]:
    """Yield `items` and show how many of `total` are done, the rate and the time left."""
    with Progress(title, total, unit, delay_s=delay_s) as bar:
        for item in items:
            yield item
            bar.advance(1)


class Progress:
    """Progress in steps of several units: `with Progress(...) as bar: bar.advance(n)`.

    A bar appears after `delay_s`; work that is done by then shows none.
    """

    def __init__(
        self, title: str, total: int, unit: str = "images", done: int = 0, delay_s: float = 0
    ) -> None:
        self._title, self._total, self._unit = title, total, unit
        # No bar if the lines would not show either, as in all but the first process of a run.
        self._is_terminal = sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
        self._bar = tqdm(
            desc=title,
            total=total,
            initial=done,
            unit=f" {unit}",
            leave=False,
            disable=not self._is_terminal,
            dynamic_ncols=True,
            delay=delay_s,
        )
        self._ends = ExitStack()
        self._ends.callback(self._bar.close)
        self._done = self._initial = done
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._is_terminal:
            from tqdm.contrib.logging import logging_redirect_tqdm

            self._ends.enter_context(logging_redirect_tqdm())  # lines go above the bar
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def expect(self, num: int) -> None:
        """Add `num` newly found units to the total."""
        self._total += num
        self._bar.total = self._total

    def advance(self, num: int, **shown: str) -> None:
        """Count `num` more units as done; `shown` appears after the rate."""
        self._done += num
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(num)
        now = time.monotonic()
        if not self._is_terminal and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            logger.info("%s", self._line(now - self._started, shown))

    def _line(self, elapsed_s: float, shown: dict[str, str]) -> str:
        rate = (self._done - self._initial) / elapsed_s
        left_s = (self._total - self._done) / rate if rate else 0.0
        extra = "".join(f", {key} {value}" for key, value in shown.items())
        return (
            f"{self._title}: {self._done}/{self._total} {self._unit}, "
            f"{rate:.1f} {self._unit}/s, {tqdm.format_interval(left_s)} left{extra}"
        )


class ByteProgress(Progress):
    """Progress in bytes, shown in MB."""

    def __init__(self, title: str, num_bytes: int, done: int = 0, delay_s: float = 0) -> None:
        super().__init__(title, -(-num_bytes // _MB), "MB", done // _MB, delay_s)
        self._bytes = done

    def count(self, num_bytes: int) -> None:
        """Count more bytes as done; fewer where a transfer begins again."""
        before, self._bytes = self._bytes, self._bytes + num_bytes
        self.advance(self._bytes // _MB - before // _MB)
