"""SIGTERM and Ctrl-C that wait for a good moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from irv2.options import Terminated


class Interrupt:
    """Remembers a signal until `check` is called; a second one stops at once.

    A context manager around the work; afterwards the handlers from before are back.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._at_once = False

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> bool:
        """Whether a signal has arrived."""
        return self._received is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, nothing is lost by stopping: a signal raises immediately."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raise KeyboardInterrupt or Terminated if a signal has arrived."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        if self._received == signal.SIGTERM:
            raise Terminated

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        again, self._received = self.received, number
        if again or self._at_once:
            self.check()
