"""What the services share: deadlines from contexts, and how an answer or a refusal is given."""

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from serve.metrics import Metrics
from serve.status import status_from_error

logger = logging.getLogger(__name__)

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class Answering:
    """Turns what the pipeline returns or raises into what a client gets, and counts it."""

    def __init__(self, metrics: Metrics, default_deadline_s: float) -> None:
        self._metrics, self._default_deadline_s = metrics, default_deadline_s

    def deadline(self, context: Context, timeout_ms: int = 0) -> float:
        """The earlier of the call's deadline and `timeout_ms` from now, on the loop's clock.

        Where there is neither (0 is none), the server's own.
        """
        call_left_s = context.time_remaining()
        limits_s = [timeout_ms / 1e3] if timeout_ms else []
        limits_s += [] if call_left_s is None else [call_left_s]
        return asyncio.get_running_loop().time() + min(limits_s, default=self._default_deadline_s)

    async def outcome(self, work: Awaitable[T]) -> "T | status_pb2.Status":
        """What `work` gives, or why it gives nothing."""
        started_at = asyncio.get_running_loop().time()
        try:
            response = await work
        except asyncio.CancelledError:
            self._metrics.observe_request("cancelled")
            raise
        except Exception as error:
            status = status_from_error(error)
            if status.code == code_pb2.INTERNAL:
                logger.exception("request_failed")
            elif status.code == code_pb2.RESOURCE_EXHAUSTED:
                took_s = asyncio.get_running_loop().time() - started_at
                self._metrics.observe_refusal(took_s)
            self._metrics.observe_request(code_pb2.Code.Name(status.code).lower())
            return status
        self._metrics.observe_request("ok")
        return response

    async def unary(self, work: Awaitable[T], context: Context) -> T:
        """What `work` gives; a refusal ends the call with its status."""
        outcome = await self.outcome(work)
        if isinstance(outcome, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(outcome))
            raise AssertionError("abort raises")
        return outcome
