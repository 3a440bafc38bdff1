"""What all requests over HTTP share: who asks, the deadline, the body's limit, and the answer.

A request is refused by its head where that is possible: without a token, for lack of time or place,
for its length. What is still sent of its body is then read and dropped, as a client that has not
sent everything would miss the answer.
"""

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from google.rpc import code_pb2, status_pb2
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.iostream import IOStream
from tornado.web import RequestHandler, stream_request_body

from irv2.errors import InvalidRequest, MessageTooLarge, Overloaded, RequestError
from irv2.protocol import retry_delay_s
from irv2.serve.access.tokens import CALLER, EXPECTED, TokenFile
from irv2.serve.operations.http import MAX_CONNECTIONS, OpenRequests
from irv2.serve.pipeline.engine import Engine
from irv2.serve.pipeline.model import Model
from irv2.serve.rpc.calls import Calls
from irv2.serve.rpc.request_log import Call

TIMEOUT_HEADER = "Request-Timeout-Ms"
MAX_OPEN = MAX_CONNECTIONS * 3 // 4  # the others are free for probes and scrapers
FULL_RETRY_S = 0.5

T = TypeVar("T")
_STATUS_BY_CODE = {
    code_pb2.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    code_pb2.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    code_pb2.NOT_FOUND: HTTPStatus.NOT_FOUND,
    code_pb2.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    code_pb2.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    code_pb2.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What answers: the model and all that requests over gRPC meet on their way to it."""

    current_model: Callable[[], Model]
    current_engine: Callable[[], Engine]
    calls: Calls
    is_ready: Callable[[], bool]
    tokens: TokenFile | None
    on_call: Callable[[str], None]  # hears the name of each caller, "" for one that is refused
    needs_certificate: bool  # of the client, for all but health
    max_message_bytes: int
    open_requests: OpenRequests

    def let_in(self, request: HTTPServerRequest) -> status_pb2.Status | None:
        """Note who asks; return the refusal of those who may not."""
        if self.needs_certificate and not request.get_ssl_certificate():
            return _unauthenticated("expected a certificate of a client")
        if self.tokens:
            name = self.tokens.name_of(request.headers.get("Authorization", ""))
            self.on_call(name)
            if not name:
                return _unauthenticated(EXPECTED)
            CALLER.set(name)
        return None


class HttpContext:
    """What gRPC's context would tell of a call."""

    def __init__(self, headers: HTTPHeaders) -> None:
        """Raises InvalidRequest where the header with the deadline makes no sense."""
        self._headers, self._deadline = headers, math.inf
        if text := headers.get(TIMEOUT_HEADER):
            timeout_ms = math.nan
            with suppress(ValueError):
                timeout_ms = float(text)
            if not 0 <= timeout_ms < math.inf:
                raise InvalidRequest(TIMEOUT_HEADER, repr(text), "milliseconds from 0 on")
            self._deadline = asyncio.get_running_loop().time() + timeout_ms / 1e3

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None if there is none."""
        if self._deadline == math.inf:
            return None
        return self._deadline - asyncio.get_running_loop().time()

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """The headers, their names in lower case."""
        return [(name.lower(), value) for name, value in self._headers.get_all()]


def whole_number(text: str) -> int | None:
    """The number from 0 on that a client has written, if it is one below 10**18."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def http_status(status: status_pb2.Status) -> HTTPStatus:
    """The status of HTTP for one of gRPC's."""
    if status.code == code_pb2.RESOURCE_EXHAUSTED and retry_delay_s(status) is None:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return _STATUS_BY_CODE.get(status.code, HTTPStatus.INTERNAL_SERVER_ERROR)


def _unauthenticated(message: str) -> status_pb2.Status:
    return status_pb2.Status(code=code_pb2.UNAUTHENTICATED, message=message)


class Reply(RequestHandler):
    """A request answered with JSON; a refusal is a text, unless a protocol wants another form."""

    def initialize(self, desk: Desk) -> None:
        """Called by Tornado before anything else."""
        self.desk = desk

    def refusal(self, status: status_pb2.Status) -> dict[str, Any]:
        """The object that tells of a refusal."""
        return {"error": status.message}

    def is_let_in(self) -> bool:
        """Whether the caller may ask; refuse it if not."""
        refusal = self.desk.let_in(self.request)
        if refusal:
            self.send_refusal(refusal)
        return refusal is None

    def send(self, found: object, code: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with an object."""
        self.send_bytes(json.dumps(found, allow_nan=False).encode(), "application/json", code)

    def send_bytes(self, body: bytes, content_type: str, code: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a body of any type."""
        self.clear_header("Server")
        self.set_status(code)
        self.set_header("Content-Type", content_type)
        self.finish(body)

    def send_refusal(self, status: status_pb2.Status) -> None:
        """Answer with a refusal, and say when to ask again if that helps."""
        code = http_status(status)
        if code is HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", "Bearer")
        elif (delay_s := retry_delay_s(status)) is not None:
            self.set_header("Retry-After", str(max(1, math.ceil(delay_s))))  # whole seconds
        self.send(self.refusal(status), code)

    def write_error(self, status_code: int, **_: object) -> None:
        """Answer what Tornado refuses, as a method that is not offered."""
        status = HTTPStatus(status_code)
        code = code_pb2.INTERNAL if status_code >= 500 else code_pb2.INVALID_ARGUMENT
        self.send(self.refusal(status_pb2.Status(code=code, message=status.phrase)), status)


@stream_request_body
class Question(Reply):
    """A POST that asks the model."""

    method = ""  # for metrics and logs
    may_wait = False  # beyond the default deadline, if the body says so

    async def ask(self, body: bytes) -> status_pb2.Status | None:
        """Answer the body, or return its refusal; cancelled if the client leaves."""
        raise NotImplementedError

    def initialize(self, desk: Desk) -> None:
        """Called by Tornado before anything else."""
        super().initialize(desk)
        self._chunks: list[bytes] = []
        self._refusal: status_pb2.Status | None = None
        self._call: Call | None = None
        self._work: asyncio.Future[Any] | None = None
        self._stream: IOStream | None = None

    def prepare(self) -> None:
        """Look at the head: refuse by it, or let the body come."""
        if self.request.method != "POST":
            return  # Tornado refuses it
        connection = self.request.connection
        assert isinstance(connection, HTTP1Connection)
        num_bytes = whole_number(self.request.headers.get("Content-Length", "")) or 0
        connection.set_max_body_size(max(self.desk.max_message_bytes, num_bytes))
        if refusal := self.desk.let_in(self.request):
            self._refusal = refusal
            return
        try:
            self._context = HttpContext(self.request.headers)
        except InvalidRequest as error:
            self._refuse(error, self.desk.calls.begin(HttpContext(HTTPHeaders()), self.method))
            return
        call = self.desk.calls.begin(self._context, self.method)
        try:
            self._check(num_bytes, call)
        except RequestError as error:
            self._refuse(error, call)
            return
        self._call = call
        connection.set_body_timeout(call.deadline - call.began_at)
        self._stream = connection.stream
        self.desk.open_requests.add(self._stream)

    def data_received(self, chunk: bytes) -> None:
        """Keep a piece of the body, unless it is refused already."""
        if self._refusal is None:
            self._chunks.append(chunk)

    async def post(self, *_: str, **__: str) -> None:
        """Answer once the body is there."""
        if self._refusal is None:
            self._work = asyncio.ensure_future(self.ask(self._take_body()))
            try:
                self._refusal = await self._work
            except asyncio.CancelledError:
                if self._work.cancelled():
                    return  # the client has gone
                raise
        if self._refusal is not None:
            self.send_refusal(self._refusal)

    def _take_body(self) -> bytes:
        """Return the body and keep none of it, as it may be large."""
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body

    async def read(self, parse: Callable[[], T]) -> T | status_pb2.Status:
        """What `parse` makes of the body in a thread, or the refusal of one that can't be read."""
        call, self._call = self._call, None
        assert call
        try:
            return await asyncio.to_thread(parse)
        except asyncio.CancelledError:
            self.desk.calls.cut_off(call, "cancelled")
            raise
        except InvalidRequest as error:
            return self.desk.calls.refuse(error, call)

    def begin(self, request_id: str, num_images: int, timeout_ms: float = 0) -> Call:
        """Note what the request is, now that it is read."""
        return self.desk.calls.begin(
            self._context, self.method, request_id, num_images, timeout_ms=timeout_ms
        )

    def on_connection_close(self) -> None:
        """Give up what nobody waits for."""
        super().on_connection_close()
        if self._work:
            self._work.cancel()
        elif self._call and self._refusal is None:
            self.desk.calls.cut_off(self._call, "unread")
            self._call = None
        self._release()

    def on_finish(self) -> None:
        """Note that the answer is on its way."""
        self._release()

    def _release(self) -> None:
        if self._stream:
            self.desk.open_requests.discard(self._stream)

    def _check(self, num_bytes: int, call: Call) -> None:
        """Raise the RequestError that the head alone brings about."""
        most = self.desk.max_message_bytes
        if num_bytes > most:
            raise MessageTooLarge("body", f"{num_bytes} bytes", f"at most {most}")
        encoding = self.request.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise InvalidRequest("Content-Encoding", repr(encoding), "none", "don't compress")
        waits = self.may_wait and call.context.time_remaining() is None
        self.desk.current_model().pipeline.check(math.inf if waits else call.deadline)
        if len(self.desk.open_requests) >= MAX_OPEN:
            got = f"{MAX_OPEN} requests over HTTP are open already"
            raise Overloaded("server", got, FULL_RETRY_S, reason="queue_full")

    def _refuse(self, error: RequestError, call: Call) -> None:
        self._refusal = self.desk.calls.refuse(error, call)
