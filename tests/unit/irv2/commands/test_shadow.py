"""`irv2 shadow` against a port that answers with metrics, or with something else."""

import json
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from certificates import issue
from click.testing import CliRunner, Result

from irv2.cli.main import main

METRICS = """
irv2_ready 1.0
irv2_shadow_info{artifact="model.onnx",backend="onnxruntime-cpu",model_id="aaa",precision="fp32",\
shadow_id="bbb",state="comparing"} 1.0
irv2_shadow_compared_total{model_id="aaa",shadow_id="bbb"} 3000.0
irv2_shadow_changed_total{model_id="aaa",shadow_id="bbb"} 12.0
irv2_shadow_repeated_total{model_id="aaa",shadow_id="bbb"} 41.0
irv2_shadow_dropped_total{model_id="aaa",shadow_id="bbb"} 18.0
irv2_shadow_max_disagreement_percent{model_id="aaa",shadow_id="bbb"} 1.0
"""


@contextmanager
def answering(text: str, tls: ssl.SSLContext | None = None):
    """The address of a port that answers every request for /metrics with this text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def shadow(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["shadow", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "verdict", "exit_code"),
    [
        ([], "passed: 12 of 3000", 0),
        (["--max-disagreement", "0.5"], "too few images: 12 of 3000", 3),
        (["--max-disagreement", "0.1"], "failed: 12 of 3000", 3),
    ],
)
def test_the_exit_status_is_that_of_the_verdict(options, verdict, exit_code, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the address is taken literally
    with answering(METRICS) as address:
        done = shadow(address, *options)
    assert done.exit_code == exit_code
    assert done.stdout.startswith(f"shadow {verdict} answers differ from the served model's; ")
    assert "not accuracy" in done.stdout


def test_an_encrypted_port_is_asked_with_its_authority(tmp_path):
    issued = issue(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(issued.certificate, issued.key)
    with answering(METRICS, tls) as address:
        done = shadow(address, "--tls-ca", issued.ca, "--json")
        assert (done.exit_code, json.loads(done.stdout)["compared"]) == (0, 3000)
        assert shadow(address, "--tls").exit_code == 1


@pytest.mark.parametrize(
    ("text", "exit_code", "message"),
    [
        ("irv2_ready 1.0\n", 2, "has no shadow; expected a server started with --shadow BUNDLE"),
        ("<html>", 1, "expected /metrics of irv2-serve, on the port of --http; add --tls or"),
    ],
)
def test_a_port_that_tells_nothing_of_a_shadow_is_one_line(text, exit_code, message):
    with answering(text) as address:
        done = shadow(address)
    [line] = done.stderr.splitlines()
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert line.startswith(f"error: {address}: ")
    assert message in line


def test_what_is_no_port_or_no_certificate_is_one_line(tmp_path):
    with answering("") as address:
        pass
    no_pem = tmp_path / "ca.pem"
    no_pem.write_text("nothing")
    for arguments, exit_code, message in (
        ((address,), 1, "no metrics there ("),
        (("http://127.0.0.1:8501",), 2, "write 127.0.0.1:8501, without http://"),
        ((address, "--tls-ca", no_pem), 2, "no certificates ("),
    ):
        done = shadow(*arguments)
        [line] = done.stderr.splitlines()
        assert (done.exit_code, done.stdout) == (exit_code, "")
        assert message in line
