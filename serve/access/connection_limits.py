"""Limits on what one client may cost, which gRPC enforces for each connection.

Sources: gRPC's keepalive guide and the comments of its channel_arg_names.h.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """The first three are options of `irv2-serve`; its help describes them."""

    max_connections: int = 1000
    max_streams: int = 1000
    max_connection_age_s: float = 0.0  # 0: no limit
    # Calls that Python has not looked at yet. Beyond it gRPC cancels some at random, beyond twice
    # as many all. With its own 1000, a process that is too slow for what comes answers most calls
    # after their deadline (DECISIONS.md).
    max_pending: int = 500
    handshake_timeout_s: float = 10.0  # also for connections that send nothing
    # Within 80 s a vanished client is noticed and its open requests are cancelled.
    keepalive_time_s: float = 60.0
    keepalive_timeout_s: float = 20.0


MAX_CONNECTION_AGE_S = (2**31 - 1) // 1000  # 24 days: gRPC's milliseconds are an int
IDLE_TIMEOUT_MS = 15 * 60_000  # a connection without calls; clients reconnect unnoticed
# Clients may ping every 10 s; the third ping that comes sooner closes the connection.
MIN_PING_INTERVAL_MS, MAX_PING_STRIKES = 10_000, 2
# Calls still open this long after their connection reached its age are cut off.
AGE_GRACE_MS = 60_000


def channel_options(
    max_message_bytes: int, limits: ConnectionLimits, *, share_port: bool = False
) -> list[tuple[str, int]]:
    """Return the options to pass to grpc.aio.server; front ends share their port."""
    options = [
        ("grpc.so_reuseport", int(share_port)),  # else two servers could share a port unnoticed
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_streams),
        ("grpc.server.max_pending_requests", limits.max_pending),
        ("grpc.server.max_pending_requests_hard_limit", 2 * limits.max_pending),
        ("grpc.server_handshake_timeout_ms", round(limits.handshake_timeout_s * 1e3)),
        ("grpc.max_connection_idle_ms", IDLE_TIMEOUT_MS),
        ("grpc.keepalive_time_ms", round(limits.keepalive_time_s * 1e3)),
        ("grpc.keepalive_timeout_ms", round(limits.keepalive_timeout_s * 1e3)),
        # The only limit on an unanswered ping that grpcio 1.85 obeys; a minute by default.
        ("grpc.http2.ping_timeout_ms", round(limits.keepalive_timeout_s * 1e3)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", MAX_PING_STRIKES),
    ]
    if limits.max_connection_age_s:
        options += [
            ("grpc.max_connection_age_ms", round(limits.max_connection_age_s * 1e3)),
            ("grpc.max_connection_age_grace_ms", AGE_GRACE_MS),
        ]
    return options
