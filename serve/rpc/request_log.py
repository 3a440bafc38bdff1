"""Following single requests: a log line each with --log-requests, an OpenTelemetry span each.

Traces are sent, as OTLP over HTTP, when the standard variables ask for it
(OTEL_EXPORTER_OTLP_ENDPOINT, or the one for traces alone); they set the endpoint, headers, sampling
and service name too. Neither a line nor a
span holds anything of an image.
"""

import asyncio
import json
import logging
import os
import re
import threading
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
from google.rpc import code_pb2

from irv2.errors import EngineError, UsageError
from irv2.protocol import status_from_error
from irv2.serve.access.tokens import CALLER
from irv2.serve.rpc.calls import WAY_S

logger = logging.getLogger(__name__)
T = TypeVar("T")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_OVER_HTTP = "http/protobuf"
_STAGES = ("queue_us", "preprocess_us", "inference_us")
MAX_ID_CHARACTERS = 128  # of what a client chose, in a record
CLOSE_TIMEOUT_S = 3.0  # for the last spans, however dead their collector is
_PLAIN = re.compile(r"[\w./:@+-]*", re.ASCII)


class Follower:
    """Wraps the work on a request; does nothing where nobody wants to know."""

    def __init__(self, *, log: bool) -> None:
        """Raises EngineError where traces are asked for and the packages are missing.

        Raises UsageError where they are to go another way than over HTTP.
        """
        self._log = log
        wants_traces = any(os.environ.get(name) for name in _ENDPOINTS)
        self._tracing = Tracing() if wants_traces else None

    async def follow(
        self,
        work: Awaitable[T],
        method: str,
        request_id: str,
        num_images: int,
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> T:
        """What `work` gives or raises, and a record of it."""
        if not (self._log or self._tracing):
            return await work
        span = self._tracing.span(method, context) if self._tracing else None
        started_at = time.monotonic()
        outcome, timing = "cancelled", None
        try:
            response = await work
            outcome, timing = "ok", getattr(response, "timing", None)
        except asyncio.CancelledError:
            left_s = context.time_remaining()
            if left_s is not None and left_s < WAY_S:
                outcome = "deadline_exceeded"
            raise
        except Exception as error:
            outcome = code_pb2.Code.Name(status_from_error(error).code).lower()
            raise
        finally:
            facts = {
                "method": method,
                "id": request_id[:MAX_ID_CHARACTERS],
                "caller": CALLER.get(),
                "num_images": num_images,
                "outcome": outcome,
                "total_us": round((time.monotonic() - started_at) * 1e6),
            }
            facts |= {stage: getattr(timing, stage) for stage in _STAGES} if timing else {}
            self._record(facts, span)
        return response

    def _record(self, facts: dict[str, Any], span: Any) -> None:  # noqa: ANN401 (an optional package's)
        if span:
            span.set_attributes({f"irv2.{name}": value for name, value in facts.items()})
            span.end()
        if self._log:
            line = " ".join(f"{name}={_escaped(value)}" for name, value in facts.items())
            logger.info("request %s", line, extra={"facts": facts})

    async def close(self) -> None:
        """Send what was not sent yet, or give up after CLOSE_TIMEOUT_S."""
        if self._tracing:
            # A daemon, since the library would wait for half a minute, here and at the exit.
            closing = threading.Thread(target=self._tracing.close, daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, CLOSE_TIMEOUT_S)
            if closing.is_alive():
                logger.warning("traces_lost timeout_s=%g", CLOSE_TIMEOUT_S)


def _escaped(value: object) -> str:
    """On a line of `name=value`, nothing that a client chose looks like another field or line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class Tracing:
    """Spans of kind SERVER, continuing the caller's trace (W3C traceparent)."""

    def __init__(self) -> None:
        for name in _PROTOCOLS:
            protocol = os.environ.get(name) or _OVER_HTTP
            if protocol != _OVER_HTTP:
                raise UsageError(name, protocol, f"{_OVER_HTTP}, port 4318 of a collector")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise EngineError(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "asks for traces, OpenTelemetry is missing",
                way_out='pip install "irv2[otel]"',
            ) from error

        name = os.environ.get("OTEL_SERVICE_NAME", "irv2")
        resource = Resource.create({"service.name": name})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("irv2")

    def span(self, name: str, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:  # noqa: ANN401 (an optional package's)
        """A span that has begun; its parent is the caller's, if it sent one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = dict(context.invocation_metadata() or ())
        parent = TraceContextTextMapPropagator().extract(headers)
        return self._tracer.start_span(name, parent, SpanKind.SERVER)

    def close(self) -> None:
        """Send the rest; what the collector does not take in time is lost."""
        self._provider.shutdown()
