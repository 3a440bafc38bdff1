"""What the services share: one call's deadline, its answer or refusal, and its outcome."""

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from irv2.errors import EngineError, Expired, Overloaded
from irv2.serve.operations.metrics import Metrics
from irv2.serve.rpc.request_log import Call, Context, RequestLog
from irv2.serve.rpc.status import status_from_error
from irv2.v1 import classifier_pb2

logger = logging.getLogger(__name__)

T = TypeVar("T")
# At its deadline a client ends the call, and for the client time began when it sent the request: a
# call that ends this long before the server's deadline has reached it, and its client has not left.
WAY_S = 0.05


class Calls:
    """Turns what the pipeline returns or raises into what a client gets; tells each outcome once.

    An outcome is "ok", the name of a status code in lower case, "cancelled" or, for a call whose
    message never came whole, "unread". Metric, log line and span get the same one.
    """

    def __init__(self, metrics: Metrics, log: RequestLog, default_deadline_s: float) -> None:
        self._metrics, self._log, self._default_deadline_s = metrics, log, default_deadline_s
        self._open: set[Call] = set()  # those being read or answered

    def begin(
        self,
        context: Context,
        method: str,
        request_id: str = "",
        num_images: int = 0,
        *,
        timeout_ms: float = 0,
    ) -> Call:
        """A call that has just come, or a request of a stream.

        It is due at the call's deadline or in `timeout_ms`, whichever is earlier; where there is
        neither (0 is none), after the server's own default.
        """
        now, call_left_s = asyncio.get_running_loop().time(), context.time_remaining()
        limits_s = [timeout_ms / 1e3] if timeout_ms else []
        limits_s += [] if call_left_s is None else [call_left_s]
        deadline = now + min(limits_s, default=self._default_deadline_s)
        return Call(context, method, request_id, num_images, now, deadline)

    def time_to_answer_s(self) -> float:
        """Until the last of the open calls is read and answered, or has expired."""
        now = asyncio.get_running_loop().time()
        return max(0.0, max((call.deadline for call in self._open), default=now) - now)

    @contextmanager
    def reading(self, call: Call) -> Iterator[None]:
        """The block reads and may answer the call; a server that stops waits for it."""
        self._open.add(call)
        try:
            yield
        finally:
            self._open.remove(call)

    async def outcome(self, work: Awaitable[T], call: Call) -> T | status_pb2.Status:
        """What `work` gives, or the status that says why it gives nothing."""
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

    async def unary(self, work: Awaitable[T], call: Call) -> T:
        """What `work` gives; a refusal ends the call with its status."""
        outcome = await self.outcome(work, call)
        if isinstance(outcome, status_pb2.Status):
            await call.context.abort_with_status(rpc_status.to_status(outcome))
            raise AssertionError("abort raises")
        return outcome

    def cut_off(self, call: Call, outcome: str) -> None:
        """The call ended before its answer: at its deadline or, long before that, as `outcome`."""
        if call.deadline - asyncio.get_running_loop().time() < WAY_S:
            self._metrics.observe_expiry("call")
            outcome = "deadline_exceeded"
        self._end(call, outcome)

    def refuse(self, error: Exception, call: Call) -> status_pb2.Status:
        """The status for a call that ends with this error."""
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
