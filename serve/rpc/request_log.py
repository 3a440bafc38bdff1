"""Records of single requests: log lines with --log-requests, and OpenTelemetry spans.

Spans are sent, as OTLP over HTTP, when the standard variable OTEL_EXPORTER_OTLP_ENDPOINT, or the
one for traces alone, is set; others turn that off again, or set headers, sampling and resource.
Neither a line nor a span holds anything of an image.
"""

import asyncio
import json
import logging
import os
import re
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc

from irv2.errors import EngineError, UsageError
from irv2.serve.access.tokens import CALLER
from irv2.system.stop import raise_if_stopped
from irv2.v1 import classifier_pb2

logger = logging.getLogger(__name__)
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class Asked(Protocol):
    """What is known of a call before its message: gRPC's context, or what HTTP's headers say."""

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None if there is none."""

    def invocation_metadata(self) -> Any:  # noqa: ANN401 (pairs of name and value)
        """The headers."""


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_OVER_HTTP = "http/protobuf"
_STAGES = ("queue_us", "preprocess_us", "inference_us")
MAX_ID_CHARACTERS = 128  # a client chooses the id; a record keeps this much of it
CLOSE_TIMEOUT_S = 3.0  # for the last spans, even if their collector is dead
_PLAIN = re.compile(r"[\w./:@+-]*", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call, or one request of a stream; times are the event loop's clock."""

    context: Asked
    method: str
    request_id: str
    num_images: int
    began_at: float
    deadline: float


class RequestLog:
    """Writes what became of each call; a no-op unless logging or tracing is on."""

    def __init__(self, *, log: bool) -> None:
        """Raises EngineError where traces are asked for and their packages are missing.

        Raises UsageError where traces should be sent in any way but OTLP over HTTP.
        """
        self._log = log
        self._tracing = Tracing() if _wants_traces() else None

    def record(self, call: Call, outcome: str, timing: classifier_pb2.Timing | None) -> None:
        """Record a call that has ended, with `timing` if its response has one."""
        if not (self._log or self._tracing):
            return
        total_s = asyncio.get_running_loop().time() - call.began_at
        facts = {
            "method": call.method,
            "id": call.request_id[:MAX_ID_CHARACTERS],
            "caller": CALLER.get(),
            "num_images": call.num_images,
            "outcome": outcome,
            "total_us": round(total_s * 1e6),
        }
        facts |= {stage: getattr(timing, stage) for stage in _STAGES} if timing else {}
        if self._tracing:
            self._tracing.send(call, facts, total_s)
        if self._log:
            line = " ".join(f"{name}={_escaped(value)}" for name, value in facts.items())
            logger.info("request %s", line, extra={"facts": facts})

    async def close(self) -> None:
        """Send the remaining spans, or give up after CLOSE_TIMEOUT_S."""
        if self._tracing:
            # In a daemon thread, as the library would wait for half a minute here and at exit.
            closing = threading.Thread(target=self._tracing.close, daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, CLOSE_TIMEOUT_S)
            if closing.is_alive():
                logger.warning("traces_lost timeout_s=%g", CLOSE_TIMEOUT_S)


def _wants_traces() -> bool:
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_disabled or not any(os.environ.get(name) for name in _ENDPOINTS):
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter not in ("otlp", "none"):
        raise UsageError("OTEL_TRACES_EXPORTER", exporter, "otlp or none")
    return exporter == "otlp"


def _escaped(value: object) -> str:
    """Quote a client's text that could look like another `name=value` or another line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class Tracing:
    """Sends spans of kind SERVER that continue the caller's trace (W3C traceparent)."""

    def __init__(self) -> None:
        for name in _PROTOCOLS:
            protocol = os.environ.get(name) or _OVER_HTTP
            if protocol != _OVER_HTTP:
                raise UsageError(name, protocol, f"{_OVER_HTTP}, port 4318 of a collector")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise_if_stopped()
            raise EngineError(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "asks for traces, OpenTelemetry is missing",
                way_out='pip install "irv2[otel]"',
            ) from error

        # The environment's attributes, which may name the service, over ours.
        ours = Resource({"service.name": "irv2", "process.pid": os.getpid()})
        given = ours.merge(OTELResourceDetector().detect())
        resource = Resource.create(given.attributes)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("irv2")

    def send(self, call: Call, facts: dict[str, Any], total_s: float) -> None:
        """Send a span over the last `total_s`, as part of the caller's trace if it has one."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = dict(call.context.invocation_metadata() or ())
        parent = TraceContextTextMapPropagator().extract(headers)
        attributes = {f"irv2.{name}": value for name, value in facts.items()}
        began_ns = time.time_ns() - round(total_s * 1e9)
        span = self._tracer.start_span(
            call.method, parent, SpanKind.SERVER, attributes, start_time=began_ns
        )
        if facts["outcome"] not in ("ok", "cancelled"):
            span.set_status(StatusCode.ERROR, facts["outcome"])
        span.end()

    def close(self) -> None:
        """Send the remaining spans; those that the collector does not take in time are lost."""
        self._provider.shutdown()
