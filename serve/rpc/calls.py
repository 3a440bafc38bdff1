"""What the services share: deadlines from contexts, and how an answer or a refusal is given."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from irv2.errors import EngineError, Expired, Overloaded
from irv2.protocol import status_from_error
from irv2.serve.operations.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")
# At its deadline a client ends the call, which counts for it from when it sent the request: so long
# before the server's deadline the end of a call is that, and not a client that has gone.
WAY_S = 0.05
Context = grpc.aio.ServicerContext[Any, Any]


class Answering:
    """Turns what the pipeline returns or raises into what a client gets, and counts it."""

    def __init__(self, metrics: Metrics, default_deadline_s: float) -> None:
        self._metrics, self._default_deadline_s = metrics, default_deadline_s
        self._open: dict[object, float] = {}  # what is being read or answered, and its deadline

    def time_to_answer_s(self) -> float:
        """Until the last of the open requests is read and answered, or has expired."""
        now = asyncio.get_running_loop().time()
        return max(0.0, max(self._open.values(), default=now) - now)

    def deadline(self, context: Context, timeout_ms: float = 0) -> float:
        """The earlier of the call's deadline and `timeout_ms` from now, on the loop's clock.

        Where there is neither (0 is none), the server's own.
        """
        call_left_s = context.time_remaining()
        limits_s = [timeout_ms / 1e3] if timeout_ms else []
        limits_s += [] if call_left_s is None else [call_left_s]
        return asyncio.get_running_loop().time() + min(limits_s, default=self._default_deadline_s)

    @contextmanager
    def awaiting(self, deadline: float) -> Iterator[None]:
        """The block reads a request, and may answer it; a server that stops waits for it."""
        reading = object()
        self._open[reading] = deadline
        try:
            yield
        finally:
            del self._open[reading]

    async def outcome(
        self, work: Awaitable[T], deadline: float = -math.inf
    ) -> "T | status_pb2.Status":
        """What `work` gives, or why it gives nothing; it ends by `deadline`."""
        started_at = asyncio.get_running_loop().time()
        self._open[work] = deadline
        try:
            response = await work
        except asyncio.CancelledError:
            self.observe_end(deadline, "cancelled")
            raise
        except Exception as error:
            status = status_from_error(error)
            if isinstance(error, Overloaded):
                took_s = asyncio.get_running_loop().time() - started_at
                self._metrics.observe_refusal(took_s, error.reason)
            elif isinstance(error, Expired):
                self._metrics.observe_expiry(error.where)
            # Of an engine's failure the batcher has told, once for all requests of the batch.
            elif status.code == code_pb2.INTERNAL and not isinstance(error, EngineError):
                logger.exception("request_failed")
            self._metrics.observe_request(code_pb2.Code.Name(status.code).lower())
            return status
        finally:
            del self._open[work]
        self._metrics.observe_request("ok")
        return response

    def observe_end(self, deadline: float, outcome: str) -> None:
        """A call ended by itself, at its deadline or as `outcome` says."""
        now = asyncio.get_running_loop().time()
        if math.isfinite(deadline) and deadline - now < WAY_S:
            self._metrics.observe_expiry("call")
            outcome = "deadline_exceeded"
        self._metrics.observe_request(outcome)

    async def unary(self, work: Awaitable[T], context: Context, deadline: float = -math.inf) -> T:
        """What `work` gives; a refusal ends the call with its status."""
        outcome = await self.outcome(work, deadline)
        if isinstance(outcome, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(outcome))
            raise AssertionError("abort raises")
        return outcome
