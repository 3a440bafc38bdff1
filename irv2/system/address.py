"""Addresses as users write them, HOST:PORT."""

import re

_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^][]*)\]|(?P<host>.*)):(?P<port>[0-9]{1,5})", re.DOTALL)


def host_and_port(text: str) -> tuple[str, int] | None:
    """Split `host:8500` or `[::1]:8500`; None if there is no port from 0 to 65535.

    IPv6 hosts lose their brackets; whether the host exists is not checked.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        return None
    return match["ipv6"] if match["host"] is None else match["host"], int(match["port"])
