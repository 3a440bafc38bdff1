"""SIGTERM, SIGHUP and Ctrl-C, held back until the work can stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from irv2.system.stop import raise_for, wanted


class Interrupt:
    """Remembers a signal until the work asks for it; a second signal stops the work at once.

    A context manager around the work, which restores the handlers afterwards. With `is_repeated`
    a second signal is ignored: torchrun repeats what a terminal has already sent to every process,
    and itself kills processes that take too long.
    """

    def __init__(self, is_repeated: bool = False) -> None:
        self._is_repeated = is_repeated
        self._received = 0
        self._at_once = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in wanted()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> int:
        """The number of the last signal received; 0: none."""
        return self._received

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, where stopping loses nothing, let a signal raise immediately."""
        self.stop(self._received)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def stop(self, number: int) -> None:
        """Raise KeyboardInterrupt for SIGINT, Terminated for the others; nothing for 0."""
        if number:
            raise_for(number)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        is_second = bool(self._received) and not self._is_repeated
        self._received = number
        if is_second or self._at_once:
            self.stop(number)
