"""Refusing a request before its message is read, and reading any message without an exception.

An early refusal costs a tenth to a fifth less, since gRPC neither copies nor parses the message,
and what exceeds HTTP/2's window of 64 kB is never sent.

Bytes that are no message are read as an empty one, which each method refuses or answers as such.
gRPC itself would answer UNKNOWN with the exception's text, and log a traceback for each of them.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from irv2.errors import RequestError
from irv2.protocol import SERVICE
from irv2.serve.pipeline.model import ServedModel
from irv2.serve.rpc.calls import Calls
from irv2.serve.rpc.open_inference import SERVICE as OPEN_INFERENCE
from irv2.serve.rpc.request_log import Context

QUEUED = (f"/{SERVICE}/Classify", f"/{OPEN_INFERENCE}/ModelInfer")


class EarlyRefusal(grpc.aio.ServerInterceptor):
    """Lets all methods read any bytes, and those of QUEUED only what the queue has room for."""

    def __init__(self, current_model: Callable[[], ServedModel], calls: Calls) -> None:
        self._current_model, self._calls = current_model, calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 (a handler, whose type knows no asyncio)
        """gRPC's hook, called as each call begins."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read = _or_empty(handler.request_deserializer)
        if details.method not in QUEUED:
            return handler._replace(request_deserializer=read)
        # To a client, a stream of one message looks the same; gRPC reads a unary call's itself.
        answer = partial(self._answer, handler.unary_unary, details.method.rpartition("/")[2])
        return grpc.stream_unary_rpc_method_handler(answer, read, handler.response_serializer)

    async def _answer(
        self,
        answer: Callable[[Any, Context], Awaitable[Any]],
        method: str,
        messages: AsyncIterator[Any],
        context: Context,
    ) -> Any:  # noqa: ANN401 (the method's)
        call = self._calls.begin(context, method)
        # If the call has no deadline, a ModelInfer message may name one later than the default.
        may_wait = method == "ModelInfer" and context.time_remaining() is None
        try:
            self._current_model().pipeline.check(math.inf if may_wait else call.deadline)
        except RequestError as error:
            await self._calls.abort(self._calls.refuse(error, call), call)
        with self._calls.reading(call):
            async for message in messages:
                return await answer(message, context)
        self._calls.cut_off(call, "unread")
        # It was too large or the client has gone, which gRPC reports; or there was none.
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no message; expected one")


def _or_empty(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read_any(message: bytes) -> Any:  # noqa: ANN401 (a message)
        try:
            return read(message)
        except DecodeError:
            return read(b"")

    return read_any
