"""HOST:PORT as users write it."""

import re

_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^][]*)\]|(?P<host>.*)):(?P<port>[0-9]{1,5})", re.DOTALL)


def host_and_port(text: str) -> tuple[str, int] | None:
    """Split `host:8500` or `[::1]:8500`; None where there is no port from 0 to 65535.

    The host comes without the brackets of IPv6; whether there is such a host is not looked at.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        return None
    return match["ipv6"] if match["host"] is None else match["host"], int(match["port"])
