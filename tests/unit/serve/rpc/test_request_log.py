"""Whether traces can be sent is settled before a server starts."""

import asyncio
import os
import subprocess
import sys

import pytest

from irv2.errors import UsageError
from irv2.serve.rpc.request_log import RequestLog


def test_traces_without_their_packages_are_one_clear_error():
    program = """
import sys
for name in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter"):
    sys.modules[name] = None
from irv2.serve.rpc.request_log import RequestLog
RequestLog(log=False)
"""
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert 'pip install "irv2[otel]"' in done.stderr
    without = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert without.returncode == 0, without.stderr


def test_traces_go_over_http_or_the_server_does_not_start(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    asyncio.run(RequestLog(log=False).close())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    with pytest.raises(UsageError, match=r"TRACES_PROTOCOL: grpc; expected http/protobuf"):
        RequestLog(log=False)


def test_an_exporter_that_is_not_there_is_wrong_usage(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    asyncio.run(RequestLog(log=False).close())  # no traces are asked for
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match="OTEL_TRACES_EXPORTER: zipkin; expected otlp or none"):
        RequestLog(log=False)
