"""What a running process prints, line by line."""

import os
from typing import IO


def read_line(stream: IO[str]) -> str:
    """Return the next line of a pipe, with its end, or "" where there is none.

    Unlike `stream.readline()` this reads nothing ahead, which `communicate()` would not return.
    """
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(stream.fileno(), 1)):
        line += byte
    return line.decode()
