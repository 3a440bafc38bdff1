"""The operators' HTTP port, over a real socket."""

import asyncio
import gc
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from certificates import issue

from irv2.serve.operations.http import (
    MAX_BODY_BYTES,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    HttpServer,
)

TIMEOUT_S = 1.0
TEXT = "text/plain; charset=utf-8"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """A running server whose readiness and metrics the test sets."""

    ready, metrics = False, b"irv2_up 1\n"
    accept = ""

    def exposition(self, accept: str) -> tuple[str, bytes]:
        self.accept = accept
        return "text/metrics", self.metrics

    async def get(self, path: str, method: str = "GET") -> tuple[int, str, str]:
        """Status, content type and text."""
        return await asyncio.to_thread(self._get, path, method)

    def _get(self, path: str, method: str) -> tuple[int, str, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        try:
            response = urllib.request.urlopen(request, timeout=5)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return response.status, response.headers["Content-Type"], response.read().decode()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def reply(self, request: bytes) -> bytes:
        """All that comes until the server closes the connection."""
        reader, writer = await self.connect()
        writer.write(request)
        try:
            return await asyncio.wait_for(reader.read(), TIMEOUT_S + 9)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


def with_site(scenario, tls: ssl.SSLContext | None = None, timeout_s: float = TIMEOUT_S):
    async def run():
        site = Site()
        server = HttpServer(site.exposition, lambda: site.ready, tls, timeout_s)
        site.port = await server.start("127.0.0.1", 0)
        try:
            await scenario(site)
        finally:
            await server.stop()

    asyncio.run(run())


def test_metrics_and_health_are_served():
    async def scenario(site):
        assert await site.get("/metrics") == (200, "text/metrics", site.metrics.decode())
        assert await site.get("/metrics", "HEAD") == (200, "text/metrics", "")
        assert await site.get("/healthz?verbose") == (200, TEXT, "alive\n")

    with_site(scenario)


def test_what_a_scraper_accepts_decides_the_format():
    async def scenario(site):
        head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        await site.reply(head + b"Accept: application/openmetrics-text\r\n\r\n")
        assert site.accept == "application/openmetrics-text"

    with_site(scenario)


def test_ready_is_said_only_when_it_is_so():
    async def scenario(site):
        assert await site.get("/readyz") == (503, TEXT, "not ready\n")
        site.ready = True
        assert await site.get("/readyz") == (200, TEXT, "ready\n")

    with_site(scenario)


@pytest.mark.parametrize(
    ("path", "method", "status", "text"),
    [
        ("/", "GET", 404, "try /metrics, /healthz or /readyz\n"),
        ("/metrics", "POST", 405, "only GET and HEAD\n"),
        ("/", "BREW", 405, "only GET and HEAD\n"),
    ],
)
def test_anything_else_is_refused(path, method, status, text):
    async def scenario(site):
        assert await site.get(path, method) == (status, TEXT, text)

    with_site(scenario)


@pytest.mark.parametrize(
    ("request_bytes", "reply"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % bytes(MAX_HEAD_BYTES), b""),
        (
            b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            % (MAX_BODY_BYTES + 1),
            b"HTTP/1.1 400 ",
        ),
        (HEALTH[:-2], b""),
        (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na", b""),
    ],
    ids=["head too large", "body too large", "half a head", "half a body"],
)
def test_a_request_too_large_or_too_slow_ends_its_connection(request_bytes, reply):
    async def scenario(site):
        assert (await site.reply(request_bytes)).startswith(reply or b"\0") == bool(reply)

    with_site(scenario)


def test_a_connection_is_kept_for_the_next_request_and_closed_when_none_comes():
    async def scenario(site):
        started_at = time.monotonic()
        assert (await site.reply(HEALTH + HEALTH)).count(b"alive") == 2
        assert time.monotonic() - started_at > TIMEOUT_S / 2

    with_site(scenario)


def test_a_head_that_comes_byte_by_byte_is_not_waited_for():
    async def scenario(site):
        reader, writer = await site.connect()
        closed, started_at = asyncio.create_task(reader.read()), time.monotonic()
        for byte in HEALTH:
            writer.write(bytes([byte]))
            await asyncio.wait({closed}, timeout=0.1)
            if closed.done():
                break
        assert TIMEOUT_S / 2 < time.monotonic() - started_at < TIMEOUT_S + 2
        writer.close()

    with_site(scenario)


def test_a_client_that_reads_no_answer_is_dropped():
    async def scenario(site):
        site.metrics = bytes(32 * 2**20)  # no buffer of the system holds that
        reader, writer = await site.connect()
        writer.transport.pause_reading()
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(3 * TIMEOUT_S)
        writer.transport.resume_reading()
        with suppress(ConnectionResetError):
            assert len(await asyncio.wait_for(reader.read(), 5)) < len(site.metrics)
        writer.close()

    with_site(scenario)


def test_a_connection_over_the_limit_closes_the_oldest():
    async def scenario(site):
        silent = [await site.connect() for _ in range(MAX_CONNECTIONS)]
        assert (await site.get("/healthz"))[0] == 200
        oldest, _ = silent[0]
        assert await asyncio.wait_for(oldest.read(), 5) == b""
        second, writer = silent[1]
        writer.write(HEALTH)
        assert await second.readline() == b"HTTP/1.1 200 OK\r\n"
        for _, writer in silent:
            writer.close()

    with_site(scenario, timeout_s=60)


def test_the_library_is_imported_only_for_this_port():
    program = "import sys; sys.modules['tornado'] = None; import irv2.serve.server"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("junk", [b"", b"\x16\x03\x01", b"x" * 100_000])
def test_junk_does_not_disturb_the_next_client(junk):
    async def scenario(site):
        _, writer = await site.connect()
        writer.write(junk)
        writer.close()
        assert (await site.get("/healthz"))[0] == 200

    with_site(scenario)


def test_a_connection_that_never_begins_its_handshake_is_closed(tmp_path):
    issued = issue(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.certificate, issued.key)

    async def scenario(site):
        reader, writer = await site.connect()
        started_at = time.monotonic()
        assert await asyncio.wait_for(reader.read(), TIMEOUT_S + 5) == b""
        assert time.monotonic() - started_at > TIMEOUT_S / 2
        writer.close()

    with_site(scenario, tls)


def test_a_record_that_cannot_be_decrypted_ends_its_connection_quietly(tmp_path, caplog):
    issued = issue(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.certificate, issued.key)

    def send_junk(port):
        with socket.create_connection(("127.0.0.1", port), 5) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.sendall(b"reset before the handshake")
        trusted = ssl.create_default_context(cafile=issued.ca)
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            trusted.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            os.write(client.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
            with suppress(ssl.SSLError):  # the server's alert
                assert client.recv(1) == b""

    async def scenario(site):
        await asyncio.to_thread(send_junk, site.port)
        await asyncio.sleep(0.1)
        gc.collect()  # where asyncio tells of an exception that nobody took

    with_site(scenario, tls)
    assert "exception" not in caplog.text
