"""What became of a request: a metric, a line in the log and a span; nothing of its image."""

import asyncio
import gzip
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from project import ROOT
from serving_process import LOOPBACK, serving
from serving_site import request, scenario_with
from tiny_bundle import SIDE

from irv2.inference import open_inference_pb2 as oip
from irv2.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from irv2.serve.operations.logs import JsonFormatter
from irv2.v1.classifier_pb2 import ClassifyRequest, ClassifyStreamRequest, Image
from irv2.v1.classifier_pb2_grpc import ClassifierStub

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def lines():
    """What the server logs as JSON, line by line."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("irv2.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_every_request_is_a_line_with_its_id_and_outcome(bundle, lines):
    secret = b"an image's bytes are nobody's business"

    async def scenario(site):
        await site.stub.Classify(request(0, 1, id="first"))
        await site.stub.Classify(ClassifyRequest(images=[Image(encoded=secret)], id="bad image"))
        await site.refusal(ClassifyRequest(id="no images"))
        call = site.stub.ClassifyStream()
        await call.write(ClassifyStreamRequest(request=request(0, id="streamed")))
        assert (await call.read()).id == "streamed"
        await call.done_writing()
        await call.code()

    scenario_with(bundle, scenario, log_requests=True)
    found = [line for line in lines() if line["message"] == "request"]
    assert [(line["id"], line["outcome"], line["num_images"]) for line in found] == [
        ("first", "ok", 2),
        ("bad image", "ok", 1),
        ("no images", "invalid_argument", 0),
        ("streamed", "ok", 1),
    ]
    assert found[0]["inference_us"] > 0
    assert found[0]["total_us"] >= found[0]["inference_us"]
    assert secret.decode() not in json.dumps(lines())


def test_a_refusal_before_the_message_is_read_has_a_line_without_an_id(bundle, lines):
    async def scenario(site):
        waiting = site.stub.Classify(request(*range(8), id="first"))  # two batches
        await asyncio.sleep(0.05)
        await site.refusal(request(9, id="second"), timeout_s=0.3)
        await waiting

    scenario_with(bundle, scenario, seconds=0.2, log_requests=True)
    found = [line for line in lines() if line["message"] == "request"]
    assert [(line["method"], line["id"], line["outcome"]) for line in found] == [
        ("Classify", "", "resource_exhausted"),
        ("Classify", "first", "ok"),
    ]


def test_an_id_forges_neither_a_line_nor_a_field_nor_fills_the_log(bundle, lines, caplog):
    caplog.set_level("INFO", "irv2.serve")
    forged = "x outcome=ok\nrequest method=Classify id=y \x1b[31m\u2028"

    async def scenario(site):
        await site.stub.Classify(request(0, id=forged))
        await site.stub.Classify(request(0, id="y" * 200))
        await site.refusal(request(0, id="z" * 100_000))

    scenario_with(bundle, scenario, log_requests=True)
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.count("\n") == 0
    assert first.isascii()
    assert first.isprintable()
    assert re.fullmatch(r'request method=Classify id="x outcome=ok\\nrequest .*" caller= .*', first)
    assert f"id={'y' * 128} " in second
    assert len(third) < 300
    assert [len(line["id"]) for line in lines()] == [len(forged), 128, 128]


def test_without_the_option_requests_are_not_logged(bundle, lines):
    async def scenario(site):
        await site.stub.Classify(request(0, id="first"))

    scenario_with(bundle, scenario)
    assert not lines()


def test_a_failure_is_one_json_line_with_its_traceback(lines):
    try:
        raise ValueError("unforeseen")
    except ValueError:
        logging.getLogger("irv2.serve").exception("failed %s", "x")
    (entry,) = lines()
    assert (entry["level"], entry["message"]) == ("error", "failed x")
    assert entry["time"].endswith("Z")
    assert "ValueError: unforeseen" in entry["traceback"]


@pytest.fixture
def collector(monkeypatch):
    """A collector of OpenTelemetry's: the spans that it was sent, each with its resource."""
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                facts = {
                    each.key: each.value.string_value or each.value.int_value
                    for each in resource.resource.attributes
                }
                for scope in resource.scope_spans:
                    spans.extend((facts, span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("SERVICE_NAME", "RESOURCE_ATTRIBUTES", "TRACES_EXPORTER", "SDK_DISABLED"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    yield spans
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_collector_that_never_answers_does_not_hold_up_the_end(bundle):
    program = """
import asyncio, sys, time
sys.path.insert(0, sys.argv[1])
from serving_site import Site, request
from irv2.bundle import Bundle
from irv2.errors import UsageError

async def main():
    site = Site(Bundle.open(sys.argv[2]), 0.0)
    await site.server.start()
    site.connect()
    async with site.channel:
        await site.stub.Classify(request(0))
    await site.server.stop()

asyncio.run(main())
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        helpers = str(ROOT / "tests/helpers")
        command = [sys.executable, "-c", program, helpers, str(bundle.path)]
        started_at = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "traces_lost" in done.stderr
        assert time.monotonic() - started_at < 9  # three and the start; 10 s for each try else


def test_a_request_is_a_span_of_its_callers_trace(bundle, collector):
    parent = f"00-{TRACE_ID}-00f067aa0ba902b7-01"

    async def scenario(site):
        await site.stub.Classify(request(0, id="traced"), metadata=(("traceparent", parent),))

    scenario_with(bundle, scenario)
    ((resource, span),) = collector
    assert resource["service.name"] == "irv2"
    assert (span.name, span.trace_id.hex()) == ("Classify", TRACE_ID)
    facts = {each.key: each.value for each in span.attributes}
    assert facts["irv2.id"].string_value == "traced"
    assert facts["irv2.outcome"].string_value == "ok"
    assert facts["irv2.inference_us"].int_value > 0
    assert span.end_time_unix_nano > span.start_time_unix_nano


def test_the_spans_of_all_front_ends_and_of_http_come_before_the_end(bundle, collector):
    parent = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
    with serving(bundle.path, "--front-ends", "2", "--http", LOOPBACK) as process:
        for _ in range(20):  # connections; the system shares them out
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(process.address, options) as channel:
                stub = ClassifierStub(channel)
                stub.Classify(request(0), timeout=20, metadata=(("traceparent", parent),))
        url, headers = f"http://{process.http}/v1/classify", {"traceparent": parent}
        asked = urllib.request.Request(url, request(0).images[0].encoded, headers)
        urllib.request.urlopen(asked, timeout=20).close()
        process.popen.send_signal(signal.SIGINT)  # no grace
        process.popen.communicate(timeout=30)
        engine = process.popen.pid
    assert len(collector) == 21
    assert {span.trace_id.hex() for _, span in collector} == {TRACE_ID}
    over_http = [of["process.pid"] == engine for of, _ in collector]
    assert [span.name == "http/Classify" for _, span in collector] == over_http
    assert sum(over_http) == 1
    assert len({of["process.pid"] for of, _ in collector}) == 3


@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({"OTEL_RESOURCE_ATTRIBUTES": "place=here,service.name=pictures"}, "pictures"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "place=here"}, "irv2"),
        (
            {
                "OTEL_RESOURCE_ATTRIBUTES": "place=here,service.name=pictures",
                "OTEL_SERVICE_NAME": "cats",
            },
            "cats",
        ),
    ],
)
def test_the_environment_describes_the_server(bundle, collector, monkeypatch, environment, service):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    async def scenario(site):
        await site.stub.Classify(request(0))

    scenario_with(bundle, scenario)
    ((resource, _),) = collector
    assert (resource["service.name"], resource["place"]) == (service, "here")


@pytest.mark.parametrize("setting", ["OTEL_TRACES_EXPORTER=none", "OTEL_SDK_DISABLED=true"])
def test_traces_that_are_turned_off_are_not_sent(bundle, collector, monkeypatch, setting):
    monkeypatch.setenv(*setting.split("="))

    async def scenario(site):
        await site.stub.Classify(request(0))

    scenario_with(bundle, scenario)
    assert not collector


class Unary:
    """`Classify`, asked for one image, or for none, which is invalid."""

    async def ask(self, site, name: str, timeout_s: float = 10.0) -> None:
        await site.stub.Classify(request(0, id=name), timeout=timeout_s)

    async def ask_wrongly(self, site) -> None:
        await site.stub.Classify(ClassifyRequest(id="wrong"))


class Streamed(Unary):
    """A request of `ClassifyStream`; without an id it is invalid."""

    async def ask(self, site, name: str, timeout_s: float = 10.0) -> None:
        call = site.stub.ClassifyStream()
        message = ClassifyStreamRequest(
            request=request(0, id=name), timeout_ms=round(timeout_s * 1e3)
        )
        await call.write(message)
        await call.read()
        await call.done_writing()

    async def ask_wrongly(self, site) -> None:
        await self.ask(site, "")


class OpenInference(Unary):
    """`ModelInfer`; without a tensor it is invalid."""

    async def ask(self, site, name: str, timeout_s: float = 10.0) -> None:
        images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        tensor = {"name": "images", "datatype": "UINT8", "shape": images.shape}
        message = oip.ModelInferRequest(
            model_name="irv2", id=name, inputs=[tensor], raw_input_contents=[images.tobytes()]
        )
        await GRPCInferenceServiceStub(site.channel).ModelInfer(message, timeout=timeout_s)

    async def ask_wrongly(self, site) -> None:
        stub = GRPCInferenceServiceStub(site.channel)
        await stub.ModelInfer(oip.ModelInferRequest(model_name="irv2"))


def outcomes_in(metrics: bytes) -> Counter[str]:
    found = re.findall(r'irv2_requests_total\{outcome="(\w+)"\} (\d+)', metrics.decode())
    return Counter({outcome: int(count) for outcome, count in found})


@pytest.mark.parametrize(
    "api", [Unary(), Streamed(), OpenInference()], ids=lambda api: type(api).__name__
)
def test_metric_log_line_and_span_tell_the_same_outcome(bundle, lines, collector, api):
    expected = {
        "answered": "ok",
        "late": "deadline_exceeded",
        "left": "cancelled",
        "one too many": "resource_exhausted",
        "wrong": "invalid_argument",
    }
    metrics = b""

    async def scenario(site):
        nonlocal metrics
        await api.ask(site, "answered")
        with suppress(grpc.aio.AioRpcError):
            await api.ask_wrongly(site)
        site.runner.seconds = 0.4  # slower than it was, which admission can't foresee
        with suppress(grpc.aio.AioRpcError):
            await api.ask(site, "late", timeout_s=0.2)
        leaving = asyncio.create_task(api.ask(site, "left"))
        await asyncio.sleep(0.1)
        leaving.cancel()
        site.runner.seconds = 0.1
        busy = site.stub.Classify(request(*range(20), id="busy"))  # all that the queue may hold
        await asyncio.sleep(0.1)
        with suppress(grpc.aio.AioRpcError):
            await api.ask(site, "one too many")
        await busy
        metrics = site.server.metrics_text()

    scenario_with(bundle, scenario, log_requests=True, max_queue=20)
    assert outcomes_in(metrics) == Counter(["ok", *expected.values()])
    logged = [line for line in lines() if line["message"] == "request"]
    assert Counter(line["outcome"] for line in logged) == outcomes_in(metrics)
    spans = [{each.key: each.value for each in span.attributes} for _, span in collector]
    in_spans = [
        tuple(facts[f"irv2.{name}"].string_value for name in ("method", "id", "outcome"))
        for facts in spans
    ]
    assert in_spans == [(line["method"], line["id"], line["outcome"]) for line in logged]
    for _, span in collector:
        (outcome,) = (each.value.string_value for each in span.attributes if "outcome" in each.key)
        failed = outcome not in ("ok", "cancelled")
        assert span.status.code == (Status.STATUS_CODE_ERROR if failed else 0)
    by_id = {line["id"]: line["outcome"] for line in logged if line["id"]}
    assert by_id.items() <= {"busy": "ok", **expected}.items()
