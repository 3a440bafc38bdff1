"""The server's log: lines on stderr, for people or as JSON, that need no reader.

All that Python writes on stderr goes this way: log lines, the ready line, errors, warnings,
tracebacks. Libraries in C write past it, and are told to be quiet where they are imported.
"""

import io
import json
import logging
import sys
import threading
import time
from typing import Any

import click

from irv2.serve.operations.background import BackgroundStream


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and a request's facts as fields."""

    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self, **names: object) -> None:
        """Each object has these `names` as fields: of the process that writes it."""
        super().__init__()
        self.converter, self._names = time.gmtime, names

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; the traceback of an exception is one of its fields."""
        facts = getattr(record, "facts", None)
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.msg.partition(" ")[0] if facts else record.getMessage(),
            **(facts or {}),
            **self._names,
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class JsonLines(io.TextIOBase):
    """Takes the place of sys.stderr and passes on each line as an object."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self.stream = stream
        self._begun, self._splitting = "", threading.RLock()

    def writable(self) -> bool:
        """Return True, as its stream does."""
        return True

    def write(self, text: str) -> int:
        """Pass on the lines that end in `text`, and keep the rest for the next call."""
        with self._splitting:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            level = logging.ERROR if line.startswith("error: ") else logging.WARNING
            self.stream.write(_json_line("stderr", level, line))
        return len(text)


def take_over_stderr(*, as_json: bool) -> None:
    """Let a thread write what is written on sys.stderr from now on, as JSON if asked for."""
    if sys.stderr is None:  # closed when the process began: nothing can be written
        return
    tell_lost = _lost_as_json if as_json else "log_lines_lost num={}\n".format
    stream = BackgroundStream(sys.stderr.fileno(), tell_lost)
    sys.stderr = JsonLines(stream) if as_json else stream


def log_there(**names: object) -> None:
    """Let all loggers write to the stderr that was taken over, and in its format.

    As JSON, each line has these `names` as fields.
    """
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.StreamHandler):
            continue
        if isinstance(sys.stderr, JsonLines):
            handler.setFormatter(JsonFormatter(**names))
            handler.setStream(sys.stderr.stream)
        elif isinstance(sys.stderr, BackgroundStream):
            handler.setStream(sys.stderr)
    logging.captureWarnings(isinstance(sys.stderr, JsonLines))


def is_json() -> bool:
    """Return whether lines on stderr are JSON."""
    return isinstance(sys.stderr, JsonLines)


def print_as_it_is(line: str) -> None:
    """Write a line to stderr that is the same in every format."""
    stream: Any = sys.stderr.stream if isinstance(sys.stderr, JsonLines) else None
    click.echo(line, stream, err=True)


def num_lines_lost() -> int:
    """How many lines could not be written."""
    stream = getattr(sys.stderr, "stream", sys.stderr)
    return stream.num_lost if isinstance(stream, BackgroundStream) else 0


def _lost_as_json(num: int) -> str:
    return _json_line(__name__, logging.WARNING, f"log_lines_lost num={num}")


def _json_line(name: str, level: int, message: str) -> str:
    record = logging.LogRecord(name, level, __file__, 0, message, (), None)
    return f"{JsonFormatter().format(record)}\n"
