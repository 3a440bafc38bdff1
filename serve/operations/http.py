"""The small HTTP port for operators: /metrics, /healthz, /readyz. One request per connection."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

logger = logging.getLogger(__name__)

READ_TIMEOUT_S = 5.0
MAX_HEAD_BYTES = 16 * 1024


class HttpServer:
    """Serves what `metrics` and `is_ready` say at the moment of asking."""

    def __init__(
        self,
        metrics: Callable[[], bytes],
        is_ready: Callable[[], bool],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._metrics, self._is_ready, self._tls = metrics, is_ready, tls
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which 0 leaves to the system. Raises OSError."""
        tls_timeout_s = READ_TIMEOUT_S if self._tls else None
        self._server = await asyncio.start_server(
            self._accept,
            host,
            port,
            limit=MAX_HEAD_BYTES,
            ssl=self._tls,
            ssl_handshake_timeout=tls_timeout_s,
            ssl_shutdown_timeout=tls_timeout_s,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port and the connections; waits for no client, as wait_closed() would."""
        if self._server:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio 3.11 reports the cancellation of one of its own as an error.
        connection = asyncio.create_task(self._serve_connection(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head))
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            with suppress(OSError):  # fetched, since asyncio may report it when it is forgotten
                await writer.wait_closed()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            logger.debug("http_request_unfinished")  # a scanner, or a client that has gone
        finally:
            writer.close()

    def _response(self, head: bytes) -> bytes:
        method, _, rest = head.decode("latin-1").partition(" ")
        status, content_type, body = self._answer(method, rest.partition(" ")[0].partition("?")[0])
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "",
            "",
        ]
        return "\r\n".join(lines).encode() + (b"" if method == "HEAD" else body)

    def _answer(self, method: str, path: str) -> tuple[HTTPStatus, str, bytes]:
        if method not in ("GET", "HEAD"):
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, self._metrics()
        if path == "/healthz":
            return _plain(HTTPStatus.OK, "alive")
        if path == "/readyz":
            if self._is_ready():
                return _plain(HTTPStatus.OK, "ready")
            return _plain(HTTPStatus.SERVICE_UNAVAILABLE, "not ready")
        return _plain(HTTPStatus.NOT_FOUND, "try /metrics, /healthz or /readyz")


def _plain(status: HTTPStatus, text: str) -> tuple[HTTPStatus, str, bytes]:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()
