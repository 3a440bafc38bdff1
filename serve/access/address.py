"""Where a server listens, and why it can't."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from irv2.errors import Irv2Error, UsageError
from irv2.system.address import UNIX, grpc_name_of_socket, host_and_port, socket_path, way_out

_ANY_IPV4, _ANY_IPV6 = "0.0.0.0", "::"


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
            raise UsageError(option, repr(text), "HOST:PORT, as in 127.0.0.1:8500", way_out(text))
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

    def on_port(self, port: int) -> Self:
        """The same host on the port that was found."""
        return replace(self, port=port)

    def listen(self) -> list[socket.socket]:
        """Listen on every IP address of the host, on one port. Raises Irv2Error.

        0.0.0.0 is all of IPv4 and nothing else; [::] is all of IPv6 and of IPv4.
        """
        listeners: list[socket.socket] = []
        missing: OSError | None = None
        with ExitStack() as opened:  # none stays open where one that this machine has is taken
            for family, ip in self._resolved():
                port = listeners[0].getsockname()[1] if listeners else self.port
                try:
                    listener = _listener(family, ip, port, dualstack=ip == _ANY_IPV6)
                except OSError as error:
                    # In a container without IPv6, localhost may be ::1 as well.
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise _cant_listen(self, error) from error
                    missing = error
                else:
                    listeners.append(opened.enter_context(listener))
            if missing and not listeners:
                raise _cant_listen(self, missing) from missing
            opened.pop_all()
        return listeners

    @contextmanager
    def ready_for_grpc(self) -> Iterator[list[str]]:
        """Give the names under which gRPC listens where `listen` would. Raises Irv2Error.

        Asked for a host of several addresses, gRPC is content with one, and doesn't tell why it got
        none; so each is tried first, and named to it by itself.
        """
        listeners = self.listen()
        port = listeners[0].getsockname()[1]
        ips = [listener.getsockname()[0] for listener in listeners]
        for listener in listeners:
            listener.close()
        names = [str(Address(ip, port)) for ip in ips]
        with as_named(names):
            yield names

    def _resolved(self) -> dict[tuple[int, str], None]:
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise UsageError(
                self, f"unknown host ({error.strerror})", "a name or an address of this machine"
            ) from error
        return {(int(family), str(address[0])): None for family, *_, address in found}


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A socket in the file system, which other machines can't reach."""

    path: Path

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """Read `unix:/run/irv2.sock`. Raises UsageError about `option`."""
        return cls(Path(socket_path(text, option)))

    def __str__(self) -> str:
        return f"{UNIX}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return True

    def on_port(self, _: int) -> Self:
        """Itself: there is no port."""
        return self

    @contextmanager
    def ready_for_grpc(self) -> Iterator[list[str]]:
        """Give gRPC's name for it, once the place is free. Raises Irv2Error.

        gRPC would take the place from a server that lives, and removes its file when it stops.
        """
        try:
            if self._is_left_over():
                self.path.unlink()
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(self.path))
            self.path.unlink()
        except OSError as error:
            raise _cant_listen(self, error) from error
        yield [grpc_name_of_socket(str(self.path))]

    def _is_left_over(self) -> bool:
        """Whether the socket of a server that is no more lies there. Raises OSError."""
        if not self.path.is_socket():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a server that is busy may not accept
            code = probe.connect_ex(str(self.path))
        if code == errno.ECONNREFUSED:
            return True
        raise OSError(errno.EADDRINUSE if code in (0, errno.EAGAIN) else code, "")


@contextmanager
def as_named(names: Sequence[str]) -> Iterator[None]:
    """For the block, let gRPC take its `names` and no other address.

    Asked for 0.0.0.0, it takes [::], which is IPv6 and IPv4. Only where IPv6 is taken it makes do
    with IPv4. Where processes share the port, one at a time may do so: Linux checks a port that is
    shared only if the socket before did not share it.
    """
    with ExitStack() as held:
        ip, _, port = names[0].rpartition(":")
        if ip == _ANY_IPV4 and socket.has_dualstack_ipv6():
            with suppress(OSError):  # another server has it: as good as held
                held.enter_context(_listener(socket.AF_INET6, _ANY_IPV6, int(port)))
        yield


def reserve(names: Sequence[str]) -> list[socket.socket]:
    """Hold the port of gRPC's `names`, as `ready_for_grpc` gives them, for processes that share it.

    Connections go to the processes that listen. While none does, another server can't take it.
    Raises Irv2Error.
    """
    held: list[socket.socket] = []
    with ExitStack() as opened:  # none stays open where one is taken
        for name in names:
            ip, _, port = name.rpartition(":")
            held.append(opened.enter_context(_holder(ip.strip("[]"), int(port))))
        opened.pop_all()
    return held


def _holder(ip: str, port: int) -> socket.socket:
    """A socket that holds a port which others share, and does not listen. Raises Irv2Error."""
    holder = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if ip == _ANY_IPV6:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        holder.bind((ip, port))
    except OSError as error:  # another server has taken it just now
        holder.close()
        raise _cant_listen(Address(ip, port), error) from error
    return holder


def parse_listen(text: str, option: str) -> Address | UnixSocket:
    """Read `HOST:PORT` or `unix:PATH`. Raises UsageError about `option`."""
    return (UnixSocket if text.startswith(UNIX) else Address).parse(text, option)


def _listener(family: int, ip: str, port: int, dualstack: bool = False) -> socket.socket:
    both = dualstack and socket.has_dualstack_ipv6()
    return socket.create_server(
        (ip, port), family=family, backlog=socket.SOMAXCONN, dualstack_ipv6=both
    )


def _cant_listen(address: Address | UnixSocket, error: OSError) -> Irv2Error:
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    if isinstance(address, UnixSocket):
        return Irv2Error(
            address, reason, "a place for a new socket", "stop what uses it or take another path"
        )
    return Irv2Error(
        address, reason, "a free port of this machine", "stop what uses it or take another port"
    )


def _is_host(text: str) -> bool:
    """Whether the system can be asked for it; it may still know no such host."""
    try:
        return bool(text.encode("idna"))
    except UnicodeError:  # "a..b", or a label of more than 63 characters
        return False
