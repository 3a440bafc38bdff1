"""What all services do with a call: set its deadline, answer or refuse it, tell its outcome."""

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from irv2.errors import EngineError, Expired, Overloaded
from irv2.protocol import status_from_error
from irv2.serve.operations.metrics import Metrics
from irv2.serve.rpc.request_log import Asked, Call, Context, RequestLog
from irv2.v1 import classifier_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")
# A client ends its call at the deadline, by a clock that started when it sent the request. So a
# call that ends this shortly before the server's deadline has reached its own.
WAY_S = 0.05


def end_with(status: status_pb2.Status, context: Context) -> None:
    """Let the call end with this status once its handler returns.

    gRPC's `abort` would raise an exception that refers to itself, and so hold the call's message
    until the garbage collector runs (https://github.com/grpc/grpc/issues/17899).
    """
    ending = rpc_status.to_status(status)
    context.set_code(ending.code)
    context.set_details(ending.details)
    context.set_trailing_metadata(ending.trailing_metadata)


class Calls:
    """Turns what the pipeline returns or raises into what a client gets, and tells the outcome.

    The outcome is "ok", the name of a status code in lower case, "cancelled", or "unread" for a
    call whose message never came whole. Metric, log line and span get the same one.
    """

    def __init__(self, metrics: Metrics, log: RequestLog, default_deadline_s: float) -> None:
        self._metrics, self._log, self._default_deadline_s = metrics, log, default_deadline_s
        self._open: set[Call] = set()  # those being read or answered

    def begin(
        self,
        context: Asked,
        method: str,
        request_id: str = "",
        num_images: int = 0,
        *,
        timeout_ms: float = 0,
    ) -> Call:
        """Note that a call, or a request of a stream, has come.

        Its deadline is the call's or `timeout_ms` from now, whichever is earlier; if there is
        neither (0 is none), the server's default.
        """
        now, call_left_s = asyncio.get_running_loop().time(), context.time_remaining()
        limits_s = [timeout_ms / 1e3] if timeout_ms else []
        limits_s += [] if call_left_s is None else [call_left_s]
        deadline = now + min(limits_s, default=self._default_deadline_s)
        return Call(context, method, request_id, num_images, now, deadline)

    def time_to_answer_s(self) -> float:
        """Seconds until all open calls are read and answered, or have expired."""
        now = asyncio.get_running_loop().time()
        return max(0.0, max((call.deadline for call in self._open), default=now) - now)

    @contextmanager
    def reading(self, call: Call) -> Iterator[None]:
        """Read, and perhaps answer, the call in the block; a server that stops waits for it."""
        self._open.add(call)
        try:
            yield
        finally:
            self._open.remove(call)

    async def outcome(self, work: Awaitable[T], call: Call) -> T | status_pb2.Status:
        """The result of `work`, or the status that says why there is none."""
        try:
            with self.reading(call):
                response = await work
        except asyncio.CancelledError:
            self.cut_off(call, "cancelled")
            raise
        except Exception as error:
            return self.refuse(error, call)
        self._end(call, "ok", getattr(response, "timing", None))
        return response

    async def unary(self, work: Awaitable[T], call: Call, context: Context) -> T | None:
        """The result of `work`; None where it was refused, and the call ends with the refusal."""
        outcome = await self.outcome(work, call)
        if isinstance(outcome, status_pb2.Status):
            end_with(outcome, context)
            return None
        return outcome

    def end(self, error: Exception, call: Call, context: Context) -> None:
        """Refuse a unary call, which ends with the status of this error."""
        end_with(self.refuse(error, call), context)

    def cut_off(self, call: Call, outcome: str) -> None:
        """Note that the call ended early: at its deadline or, well before that, as `outcome`."""
        if call.deadline - asyncio.get_running_loop().time() < WAY_S:
            self._metrics.observe_expiry("call")
            outcome = "deadline_exceeded"
        self._end(call, outcome)

    def refuse(self, error: Exception, call: Call) -> status_pb2.Status:
        """Note that the call ended with this error, and return its status."""
        status = status_from_error(error)
        if isinstance(error, Overloaded):
            took_s = asyncio.get_running_loop().time() - call.began_at
            self._metrics.observe_refusal(took_s, error.reason)
        elif isinstance(error, Expired):
            self._metrics.observe_expiry(error.where)
        # The batcher has logged an engine's failure, once for all requests of the batch.
        elif status.code == code_pb2.INTERNAL and not isinstance(error, EngineError):
            logger.error("request_failed", exc_info=error)
        self._end(call, code_pb2.Code.Name(status.code).lower())
        return status

    def _end(self, call: Call, outcome: str, timing: classifier_pb2.Timing | None = None) -> None:
        self._metrics.observe_request(outcome)
        self._log.record(call, outcome, timing)
