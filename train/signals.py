"""SIGTERM and Ctrl-C that wait for a good moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from irv2.cli.program import Terminated


class Interrupt:
    """Remembers a signal until the work asks; a second one stops at once.

    A context manager around the work; afterwards the handlers from before are back. With
    `is_repeated` a second one says nothing new: torchrun passes on what a terminal has already
    sent to every process, and kills by itself what takes too long.
    """

    def __init__(self, is_repeated: bool = False) -> None:
        self._is_repeated = is_repeated
        self._received = 0
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
    def received(self) -> int:
        """The number of the signal that has arrived; 0: none."""
        return self._received

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, nothing is lost by stopping: a signal raises immediately."""
        self.stop(self._received)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def stop(self, number: int) -> None:
        """Raise KeyboardInterrupt for SIGINT, Terminated for SIGTERM; nothing for 0."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            raise Terminated

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        is_second = bool(self._received) and not self._is_repeated
        self._received = number
        if is_second or self._at_once:
            self.stop(number)
