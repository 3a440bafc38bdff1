"""Log lines as JSON objects, for collectors; plain text, for people, stays the default."""

import json
import logging
import time


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, and a request's facts as fields."""

    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self) -> None:
        super().__init__()
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; the traceback of an exception is one of its fields."""
        facts = getattr(record, "facts", None)
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.msg.partition(" ")[0] if facts else record.getMessage(),
            **(facts or {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def log_as_json() -> None:
    """Write every log line as JSON from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())
