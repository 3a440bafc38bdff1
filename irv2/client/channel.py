"""The connection to one server, or to several that take turns: round robin, TLS, a token."""

import json
import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import grpc

from irv2.errors import NotServing, UsageError
from irv2.protocol import SERVICE
from irv2.system.address import UNIX, grpc_name_of_socket, host_and_port, socket_path, way_out

logger = logging.getLogger(__name__)

_Host = tuple[str, str, int]  # the address as the user wrote it; host; port


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The authorities that the client trusts and its own certificate, as PEM files.

    `ca` None trusts what gRPC trusts (public authorities). `server_name` is the name that the
    server's certificate must carry; None takes the host of the (first) address.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise UsageError("TLS", "a certificate without its key, or a key alone", "both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """Load gRPC's credentials; raises UsageError for a file that is unreadable or unfit."""
        try:
            ca, key, certificate = (
                path.read_bytes() if path else None
                for path in (self.ca, self.key, self.certificate)
            )
        except OSError as error:
            raise UsageError(error.filename, error.strerror or "can't be read", "PEM") from error
        self._check()
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def _check(self) -> None:
        """Check the files, since gRPC would fail only at a handshake without naming the file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca:
                context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise UsageError(self.ca, f"no certificates ({error.reason})", "PEM") from error
        try:
            if self.certificate:  # gRPC takes no password
                from irv2.system.certificate import check_key  # what it costs, only this pays

                check_key(self.certificate)
                context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            got = f"no certificate with its key ({error.reason or error})"
            raise UsageError(self.certificate, got, "PEM files that belong together") from error


def open_channel(addresses: Sequence[str], tls: Tls | None) -> grpc.Channel:
    """A channel to HOST:PORT, to several, or to unix:PATH; connects when first used.

    Raises UsageError for what is no address, and NotServing where no host of a list is known.
    """
    if not addresses:
        raise UsageError("address", "none", "HOST:PORT or unix:PATH")
    options = [
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_retries", 0),  # our own retries obey RetryInfo
        ("grpc.enable_http_proxy", 0),  # an address is taken literally
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Notice a server that hangs or a machine that is gone while a call waits for it.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
    ]
    if len(addresses) > 1:
        # A server about to stop reports itself unhealthy, and the others get its requests. A lone
        # server is asked regardless: it still answers in its grace period.
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": SERVICE},
        }
        options.append(("grpc.service_config", json.dumps(config)))
    target, host = _target(addresses)
    if tls is None:
        return grpc.insecure_channel(target, options)
    if name := tls.server_name or host:
        options.append(("grpc.ssl_target_name_override", name))
    return grpc.secure_channel(target, tls.credentials(), options)


def open_channels_one_by_one(address: str, tls: Tls | None) -> Iterator[grpc.Channel]:
    """A channel to each IP address of a host, to find out which of them fails, and why."""
    if address.startswith(UNIX):
        return
    host, port = _host_and_port(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # an unknown host has none
        return
    ips = {str(place[0]): None for *_, place in found}
    if host == "localhost":  # gRPC tries both, whatever /etc/hosts says
        ips |= {"127.0.0.1": None, "::1": None}
    if tls and not tls.server_name:
        tls = replace(tls, server_name=host)
    for ip in ips:
        with open_channel([f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"], tls) as channel:
            yield channel


def _host_and_port(name: str) -> tuple[str, int]:
    """Split HOST:PORT; checked here, since gRPC takes a port above 65535 modulo 65536."""
    found = host_and_port(name)
    if found is None or found[1] == 0:
        expected = "HOST:PORT, the port from 1 to 65535, or unix:PATH"
        raise UsageError("address", repr(name), expected, way_out(name))
    return found


def _target(addresses: Sequence[str]) -> tuple[str, str | None]:
    """Return gRPC's name for the servers, and the name for certificates where it can't know it."""
    if len(addresses) == 1 and addresses[0].startswith(UNIX):
        return grpc_name_of_socket(socket_path(addresses[0], "address")), None
    if any(name.startswith(UNIX) for name in addresses):
        raise UsageError("address", "a socket in a list", "one unix:PATH alone, or HOST:PORT,...")
    hosts = [(name, *_host_and_port(name)) for name in addresses]
    if len(hosts) == 1:  # gRPC resolves it, anew after each lost connection
        return addresses[0], None
    return _list_of(hosts), hosts[0][1]


def _list_of(hosts: list[_Host]) -> str:
    """Return gRPC's name for a list of servers, which may not contain host names."""
    found = list(_resolve_all(hosts))
    if all(ip.version == 4 for ip, _ in found):
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in found)
    # All addresses of a list are of one family: IPv4 beside IPv6 is written as mapped IPv6.
    return "ipv6:" + ",".join(
        f"[{'::ffff:' if ip.version == 4 else ''}{ip}]:{port}" for ip, port in found
    )


def _resolve_all(hosts: list[_Host]) -> Iterator[tuple[IPv4Address | IPv6Address, int]]:
    """Yield the addresses of all hosts that resolve: a server taken down loses its name."""
    unknown = []
    for host in hosts:
        try:
            yield from _resolve(*host)
        except NotServing as error:
            unknown.append(error)
    if len(unknown) == len(hosts):
        raise unknown[0]
    for failure in unknown:
        logger.warning("%s; going on without it", failure)


def _resolve(name: str, host: str, port: int) -> list[tuple[IPv4Address | IPv6Address, int]]:
    """Resolve a host to IPv4, or else to IPv6: both would give one server two turns."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError for names such as a..b
            reason = getattr(error, "strerror", error)
        else:
            return [(ip_address(address[4][0]), port) for address in found]
    raise NotServing(name, f"unknown host ({reason})")
