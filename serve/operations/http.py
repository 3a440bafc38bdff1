"""The HTTP port, served by Tornado: /metrics, /healthz and /readyz, and what others add (rest/).

Imported only where `--http` is given. Tornado keeps the limits on what a request may be and how
long it may take; the limit on connections is ours, since Tornado accepts as many as come.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, SSLIOStream
from tornado.routing import PathMatches, Rule
from tornado.web import Application, RequestHandler

from irv2.serve.access.address import Address

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
# To send a request's head, counted from the connection or the last answer; then to send its body;
# and to read on in the answer.
TIMEOUT_S = 5.0
MAX_HEAD_BYTES = MAX_BODY_BYTES = 16 * 1024
ACCEPT_PAUSE_S = 1.0
LAST_ANSWER_S = 0.5  # for requests that are open when the server stops

Answer = tuple[HTTPStatus, str, bytes]
Exposition = Callable[[str], tuple[str, bytes]]  # from the header Accept: content type and metrics


class OpenRequests:
    """The connections whose requests are being read or answered; not closed in favour of others."""

    def __init__(self) -> None:
        self._streams: set[IOStream] = set()
        self._none = asyncio.Event()
        self._none.set()

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, stream: object) -> bool:
        return stream in self._streams

    def add(self, stream: IOStream) -> None:
        """Note that a request has begun."""
        self._streams.add(stream)
        self._none.clear()

    def discard(self, stream: IOStream) -> None:
        """Note that a request has ended, if it was open."""
        self._streams.discard(stream)
        if not self._streams:
            self._none.set()

    async def wait(self, timeout_s: float) -> None:
        """Wait until none is left, but no longer than this."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), timeout_s)


class HttpServer:
    """Serve what `metrics` and `is_ready` return at the moment of asking."""

    def __init__(
        self,
        metrics: Exposition,
        is_ready: Callable[[], bool],
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
        rules: Sequence[Rule] = (),
        open_requests: OpenRequests | None = None,
    ) -> None:
        """`rules` are of other paths; a connection in `open_requests` is not closed for others."""
        self._open_requests = OpenRequests() if open_requests is None else open_requests
        logging.getLogger("tornado.general").setLevel(logging.ERROR)  # what scanners send
        self._server = _BoundedServer(
            _application(metrics, is_ready, rules),
            max_header_size=MAX_HEAD_BYTES,
            max_body_size=MAX_BODY_BYTES,
            idle_connection_timeout=timeout_s,
            body_timeout=timeout_s,
        )
        self._server.open_requests = self._open_requests
        self._tls, self._timeout_s = tls, timeout_s
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which 0 leaves to the system. Raises Irv2Error."""
        self._listeners = Address(host, port).listen()
        for listener in self._listeners:
            listener.setblocking(False)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # a client that does not read its answer
                timeout_ms = round(self._timeout_s * 1e3)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
            accepting = self._server.accept_from(listener, self._tls)
            self._accepting.append(asyncio.create_task(accepting))
        return int(self._listeners[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port, let the last answers go their way, and close all connections."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        await self._open_requests.wait(LAST_ANSWER_S)
        await self._server.close_all_connections()


class _BoundedServer(HTTPServer):
    """Tornado's server with a limit on connections: one more closes the oldest without a request.

    So a crowd of silent connections keeps no probe waiting, and takes no file from gRPC.
    """

    open_requests: OpenRequests

    def initialize(self, *args: object, **options: object) -> None:
        super().initialize(*args, **options)  # type: ignore[arg-type]
        self._streams: dict[IOStream, None] = {}  # the oldest first

    async def accept_from(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        while True:
            connection, address = await _accept(listener)
            try:
                stream = _encrypted(connection, tls) if tls else IOStream(connection)
            except OSError:  # the client has gone
                connection.close()
            else:
                self.handle_stream(stream, address)
            await asyncio.sleep(0)  # accepting did not wait if more have come already

    def handle_stream(self, stream: IOStream, address: tuple[object, ...]) -> None:
        if len(self._streams) == MAX_CONNECTIONS:
            oldest = next(each for each in self._streams if each not in self.open_requests)
            del self._streams[oldest]
            oldest.close()
        self._streams[stream] = None
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        assert isinstance(server_conn, HTTP1ServerConnection)
        self._streams.pop(server_conn.stream, None)


async def _accept(listener: socket.socket) -> tuple[socket.socket, tuple[object, ...]]:
    """Wait for the next connection, also while the process has no file left for one."""
    while True:
        try:
            return await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:
            logger.warning("http_accept_failed error=%s", error)
            await asyncio.sleep(ACCEPT_PAUSE_S)


def _encrypted(connection: socket.socket, tls: ssl.SSLContext) -> SSLIOStream:
    return SSLIOStream(tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False))


def _application(
    metrics: Exposition, is_ready: Callable[[], bool], rules: Sequence[Rule]
) -> Application:
    def readiness(accept: str) -> Answer:
        if is_ready():
            return _plain(HTTPStatus.OK, "ready")
        return _plain(HTTPStatus.SERVICE_UNAVAILABLE, "not ready")

    pages: dict[str, Callable[[str], Answer]] = {
        "/metrics": lambda accept: (HTTPStatus.OK, *metrics(accept)),
        "/healthz": lambda accept: _plain(HTTPStatus.OK, "alive"),
        "/readyz": readiness,
    }
    own = [Rule(PathMatches(path), _Page, {"answer": answer}) for path, answer in pages.items()]
    missing = _plain(HTTPStatus.NOT_FOUND, "try /metrics, /healthz or /readyz")
    return Application(
        [*own, *rules],
        default_handler_class=_Page,
        default_handler_args={"answer": lambda accept: missing},
        log_function=lambda _: None,  # no line per request
        cross_origin_protection=True,  # no page of another site makes its readers' browsers ask
    )


class Handler(RequestHandler):
    """Answers without a word on the software behind it."""

    def send_body(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        """Answer with a body of any type."""
        self.clear_header("Server")
        self.set_status(status)
        self.set_header("Content-Type", content_type)
        self.finish(body)


class _Page(Handler):
    """Answer GET and HEAD with what `answer` makes of Accept, and other methods with 405."""

    def initialize(self, answer: Callable[[str], Answer]) -> None:
        self._answer = answer

    def get(self) -> None:
        self.send_body(*self._answer(self.request.headers.get("Accept", "")))

    head = get

    def write_error(self, status_code: int, **_: object) -> None:
        status = HTTPStatus(status_code)
        is_method = status is HTTPStatus.METHOD_NOT_ALLOWED
        self.send_body(*_plain(status, "only GET and HEAD" if is_method else status.phrase))


def _plain(status: HTTPStatus, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()
