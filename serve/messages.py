"""Bytes that are no message: read as an empty one, which each method refuses or answers as such.

gRPC itself would answer UNKNOWN with the text of the exception, and write a traceback into the log
for every such message that a client sends.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Readable(grpc.aio.ServerInterceptor):
    """Makes the methods of a server read anything."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """gRPC's hook, called as each call begins."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler
        readable: _Handler = handler._replace(  # type: ignore[attr-defined]  # a named tuple
            request_deserializer=_or_empty(handler.request_deserializer)
        )
        return readable


def _or_empty(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read_any(message: bytes) -> Any:  # noqa: ANN401 (a message)
        try:
            return read(message)
        except DecodeError:
            return read(b"")

    return read_any
