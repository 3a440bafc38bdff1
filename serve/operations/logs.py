"""Log lines as JSON objects, for collectors; text stays the default, for people."""

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
        """The object; an exception's traceback is one field of it."""
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
    """Change the format of every line from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())
