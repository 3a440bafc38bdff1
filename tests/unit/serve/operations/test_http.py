"""The operators' HTTP port, over a real socket."""

import asyncio
import gc
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from certificates import issue

from irv2.serve.operations.http import READ_TIMEOUT_S, HttpServer


class Site:
    """A running server whose readiness the test sets."""

    ready = False

    async def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        return await asyncio.to_thread(self._get, path, method)

    def _get(self, path: str, method: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def with_site(scenario, tls: ssl.SSLContext | None = None):
    async def run():
        site = Site()
        server = HttpServer(lambda: b"irv2_up 1\n", lambda: site.ready, tls)
        site.port = await server.start("127.0.0.1", 0)
        try:
            await scenario(site)
        finally:
            await server.stop()

    asyncio.run(run())


def test_metrics_and_health_are_served():
    async def scenario(site):
        assert await site.get("/metrics") == (200, "irv2_up 1\n")
        assert await site.get("/healthz?verbose") == (200, "alive\n")

    with_site(scenario)


def test_ready_is_said_only_when_it_is_so():
    async def scenario(site):
        assert (await site.get("/readyz"))[0] == 503
        site.ready = True
        assert (await site.get("/readyz"))[0] == 200

    with_site(scenario)


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405)]
)
def test_anything_else_is_refused(path, method, status):
    async def scenario(site):
        assert (await site.get(path, method))[0] == status

    with_site(scenario)


@pytest.mark.parametrize("junk", [b"", b"\x16\x03\x01", b"x" * 100_000])
def test_junk_does_not_disturb_the_next_client(junk):
    async def scenario(site):
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(junk)
        writer.close()
        assert (await site.get("/healthz"))[0] == 200

    with_site(scenario)


def test_a_connection_that_never_begins_its_handshake_is_closed(tmp_path):
    issued = issue(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.certificate, issued.key)

    async def scenario(site):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        started_at = time.monotonic()
        assert await asyncio.wait_for(reader.read(), READ_TIMEOUT_S + 5) == b""
        assert time.monotonic() - started_at > READ_TIMEOUT_S - 1
        writer.close()

    with_site(scenario, tls)


def test_a_record_that_cannot_be_decrypted_ends_its_connection_quietly(tmp_path, caplog):
    issued = issue(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.certificate, issued.key)

    def send_junk(port):
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
