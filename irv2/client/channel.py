"""The connection to one server, or to several that take turns: round robin, TLS, a token."""

import json
import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import grpc

from irv2.errors import NotServing, UsageError
from irv2.protocol import SERVICE
from irv2.system.address import host_and_port

logger = logging.getLogger(__name__)

_Host = tuple[str, str, int]  # as the user wrote it; host; port


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Whom the client trusts and who it is; PEM files.

    `ca` None trusts what gRPC trusts (public authorities). `server_name` is the name that the
    certificate has to carry; None takes the host of the (first) address.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise UsageError("TLS", "a certificate without its key, or a key alone", "both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises UsageError where a file can't be read or does not hold what it should."""
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
        """gRPC would notice only at a handshake, and not say which file it is."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca:
                context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise UsageError(self.ca, f"no certificates ({error.reason})", "PEM") from error
        try:
            if self.certificate:  # gRPC takes no password
                context.load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            got = f"no certificate with its key ({error.reason or error})"
            raise UsageError(self.certificate, got, "PEM files that belong together") from error


def open_channel(addresses: Sequence[str], tls: Tls | None) -> grpc.Channel:
    """A channel to HOST:PORT, or to several; connects when first used. Raises UsageError."""
    if not addresses:
        raise UsageError("address", "none", "HOST:PORT")
    options = [
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_retries", 0),  # ours know RetryInfo
        ("grpc.enable_http_proxy", 0),  # an address is where the server is
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A server that hangs, or a machine that is gone, is noticed while a call waits for it.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
    ]
    if len(addresses) > 1:
        # A server that is about to stop says so; then the others get its share. A lone one is
        # asked all the same: it answers through its grace period.
        config = {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": SERVICE},
        }
        options.append(("grpc.service_config", json.dumps(config)))
    hosts = [(name, *_host_and_port(name)) for name in addresses]
    # gRPC resolves a single name, again whenever its connection is lost; a list is resolved here.
    target = addresses[0] if len(hosts) == 1 else _target(hosts)
    if tls is None:
        return grpc.insecure_channel(target, options)
    if tls.server_name or len(addresses) > 1:  # of a list gRPC knows no name to check
        options.append(("grpc.ssl_target_name_override", tls.server_name or hosts[0][1]))
    return grpc.secure_channel(target, tls.credentials(), options)


def _host_and_port(name: str) -> tuple[str, int]:
    """Checked here, since gRPC takes a port above 65535 modulo 65536."""
    found = host_and_port(name)
    if found is None or found[1] == 0:
        raise UsageError("address", repr(name), "HOST:PORT, the port from 1 to 65535")
    return found


def _target(hosts: list[_Host]) -> str:
    """gRPC's name for a list of servers, which takes no host names."""
    found = list(_resolve_all(hosts))
    if all(ip.version == 4 for ip, _ in found):
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in found)
    # A list is of one family: next to IPv6, IPv4 is written in its way.
    return "ipv6:" + ",".join(
        f"[{'::ffff:' if ip.version == 4 else ''}{ip}]:{port}" for ip, port in found
    )


def _resolve_all(hosts: list[_Host]) -> Iterator[tuple[IPv4Address | IPv6Address, int]]:
    """The addresses of all known hosts: a server that was taken down loses its name."""
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
    """A host's IPv4 addresses, or its IPv6 ones where it has no other: one server, one share."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # a..b is no name that could be looked up
            reason = getattr(error, "strerror", error)
        else:
            return [(ip_address(address[4][0]), port) for address in found]
    raise NotServing(name, f"unknown host ({reason})")
