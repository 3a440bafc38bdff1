"""Addresses as users write them: HOST:PORT, or unix:PATH."""

import os
import re
from urllib.parse import quote

from irv2.errors import UsageError

UNIX = "unix:"
MAX_SOCKET_PATH_BYTES = 107  # Linux's sun_path, which ends with a NUL
_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^][/]+)\]|(?P<host>[^][:/]+)):(?P<port>[0-9]{1,5})")
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://+(?P<host_port>[^/]*)/?", re.IGNORECASE)


def host_and_port(text: str) -> tuple[str, int] | None:
    """Split `host:8500` or `[::1]:8500`; None if there is no port from 0 to 65535.

    IPv6 hosts stand in brackets, and lose them; whether the host exists is not checked.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        return None
    return match["host"] if match["ipv6"] is None else match["ipv6"], int(match["port"])


def socket_path(text: str, what: str) -> str:
    """Return the PATH of `unix:PATH`. Raises UsageError about `what` if no socket can lie there."""
    path = text.removeprefix(UNIX)
    num_bytes = len(os.fsencode(path))
    if not 0 < num_bytes <= MAX_SOCKET_PATH_BYTES or "\0" in path:
        got = f"{text!r}, a path of {num_bytes} bytes"
        expected = f"unix:PATH, a path of 1 to {MAX_SOCKET_PATH_BYTES} bytes without NUL"
        raise UsageError(what, got, expected)
    return path


def grpc_name_of_socket(path: str) -> str:
    """What gRPC calls the socket at a path: a URI, so "%20" would be a space."""
    return UNIX + quote(path)


def way_out(text: str) -> str:
    """What to write instead of `text`, which is no address; empty where that is not clear."""
    if match := _URL.fullmatch(text):
        return f"write {match['host_port']}, without {match['scheme']}://"
    return "write an IPv6 address in brackets, as in [::1]:8500" if text.count(":") > 1 else ""
