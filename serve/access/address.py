"""Where a server listens, and why it can't."""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Self

from irv2.errors import Irv2Error, UsageError
from irv2.system.address import host_and_port


@dataclass(frozen=True, slots=True)
class Address:
    """A host, without the brackets of IPv6, and a port; port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """Read `127.0.0.1:8500`, `localhost:0`, `[::1]:8500`. Raises UsageError about `option`."""
        found = host_and_port(text)
        if found is None or not _is_host(found[0]):
            raise UsageError(option, repr(text), "HOST:PORT, as in 127.0.0.1:8500")
        return cls(*found)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def why_not(self) -> Irv2Error:
        """The error to raise where listening failed; asks the system again, gRPC does not tell."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        reason = "can't listen there"
        try:
            with socket.socket(family) as probe:
                probe.bind((self.host, self.port))
        except OSError as error:
            reason = (error.strerror or reason).lower()
        return Irv2Error(
            self, reason, "a free port of this machine", "stop what uses it or take another port"
        )


def _is_host(text: str) -> bool:
    """Whether the system can be asked for it; it may still know no such host."""
    try:
        return bool(text.encode("idna"))
    except UnicodeError:  # "a..b", or a label of more than 63 characters
        return False
