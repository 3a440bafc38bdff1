"""Ctrl-C, SIGTERM and SIGHUP: they end a program, whatever a library makes of them.

Libraries turn the exception of a signal into an ImportError or another error of theirs, or swallow
it. So a signal is remembered until it has come through.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

LINES = {
    signal.SIGINT: "stopped by Ctrl-C",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped by SIGHUP",  # the terminal was closed
}


class Terminated(BaseException):
    """Raised on a signal: unwinds like KeyboardInterrupt, so that `finally` blocks run."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


_received: int | None = None  # the last signal, 0 for none yet; None outside `unwinding`


def end_at_once() -> None:
    """From now on, let a signal end the process with its line and status, and unwind nothing.

    For a program's imports and for its end, when nothing of its own is open.
    """
    for number in wanted():
        signal.signal(number, _end)


def wanted() -> list[signal.Signals]:
    """List the signals that end this program: a job in the background or nohup ignores one."""
    return [number for number in LINES if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def unwinding() -> Iterator[None]:
    """Within the block, let a signal raise KeyboardInterrupt or Terminated.

    That is also what comes out of the block, if a library made another exception of it, or none.
    """
    global _received
    before = {number: signal.signal(number, _raise) for number in wanted()}
    _received = 0
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        received, _received = _received, None
        if received:
            raise_for(received)


def raise_if_stopped() -> None:
    """Raise for a signal that has come; call this wherever a library's exceptions are caught."""
    if _received:
        raise_for(_received)


def raise_for(number: int) -> NoReturn:
    """Raise KeyboardInterrupt for SIGINT, Terminated for the others, and remember that."""
    global _received
    if _received is not None:
        _received = number
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise_for(number)


def _end(number: int, _frame: FrameType | None) -> None:
    os.write(2, f"\nerror: {LINES[signal.Signals(number)]}\n".encode())  # below a terminal's ^C
    os._exit(128 + number)
