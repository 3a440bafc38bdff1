"""What the server writes, by threads of their own: nobody who should read it can hold it up."""

import atexit
import io
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable

MAX_WAITING = 4096  # lines; some seconds of --log-requests at full speed
LAST_LINES_S = 0.5  # for what is still unwritten when the process ends
RETRY_S = 0.01


class BackgroundStream(io.TextIOBase):
    """A text stream that a thread writes to a descriptor.

    Lines that find MAX_WAITING before them, or that can't be written, are dropped and counted.
    Once lines are written again, the line `tell_lost(number)` follows them.
    """

    def __init__(self, descriptor: int, tell_lost: Callable[[int], str]) -> None:
        self.num_lost = 0
        self._descriptor, self._tell_lost, self._num_told = descriptor, tell_lost, 0
        # Queue and lock are reentrant, since a destructor may warn in the midst of a write.
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._counting = threading.RLock()
        self._thread = threading.Thread(target=self._write_waiting, daemon=True)
        self._thread.start()
        atexit.register(self.finish)

    def writable(self) -> bool:
        """Return True: what nobody reads is lost, and no error."""
        return True

    def write(self, text: str) -> int:
        """Hand the text to the thread, or count its lines as lost."""
        encoded = _encoded(text)
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put(encoded)
        else:
            self._lose(encoded)
        return len(text)

    def finish(self) -> None:
        """Wait until everything is written, at most LAST_LINES_S."""
        self._waiting.put(None)
        self._thread.join(LAST_LINES_S)

    def _write_waiting(self) -> None:
        for lines in iter(self._waiting.get, None):
            if not self._is_written(lines):
                self._lose(lines)
            elif self._waiting.empty():  # the reader has caught up
                self._tell()
        self._tell()

    def _is_written(self, lines: bytes) -> bool:
        try:
            _write_all(self._descriptor, lines)
        except OSError:  # the disk is full, or the reader has gone; `num_lost` tells of it
            return False
        return True

    def _tell(self) -> None:
        num = self.num_lost - self._num_told
        if num and self._is_written(_encoded(self._tell_lost(num))):
            self._num_told += num

    def _lose(self, lines: bytes) -> None:
        with self._counting:
            self.num_lost += lines.count(b"\n")


def print_in_background(text: str, on_error: Callable[[OSError], None]) -> None:
    """Print the text on stdout unless that is closed; call `on_error` where printing fails."""
    if sys.stdout is None:
        return
    descriptor = sys.stdout.fileno()

    def print_text() -> None:
        try:
            _write_all(descriptor, _encoded(f"{text}\n"))
        except OSError as error:
            on_error(error)

    printing = threading.Thread(target=print_text, daemon=True)
    printing.start()
    atexit.register(printing.join, LAST_LINES_S)


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # as Python's own stderr does


def _write_all(descriptor: int, rest: bytes) -> None:
    """Write all of it, also where another process has made the descriptor non-blocking."""
    while rest:
        select.select([], [descriptor], [])
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # there is room, but not for this much
            time.sleep(RETRY_S)
