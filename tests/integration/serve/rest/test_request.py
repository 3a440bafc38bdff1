"""What all requests over HTTP meet: tokens, limits, crowds, and the end of client or server."""

import asyncio
import base64
import json

from http_site import HTTP, ask
from serving_site import jpeg, scenario_with

from irv2.serve.operations.http import MAX_CONNECTIONS
from irv2.serve.rest.request import MAX_OPEN

INFER = "/v2/models/irv2-files/infer"
TOKEN = "a-token-of-some-length"
DATA = [base64.b64encode(jpeg(0)).decode()]
ASKED = json.dumps(
    {"inputs": [{"name": "files", "datatype": "BYTES", "shape": [1], "data": DATA}]}
).encode()


def outcomes(site, name: str) -> float:
    """How many requests ended so."""
    lines = site.server.metrics_text().decode().splitlines()
    found = [line for line in lines if line.startswith(f'irv2_requests_total{{outcome="{name}"}}')]
    return float(found[0].split()[1]) if found else 0


async def begin(site, body: bytes = ASKED, length: int | None = None):
    """A connection on which a request was sent; `length` is what its head says of the body."""
    host, _, port = site.server.description["http"].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {length or len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_only_health_is_open_to_those_without_a_token(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"me {TOKEN}\n")

    async def scenario(site):
        for path in ("/v2/health/ready", "/v2/models/irv2/ready"):
            assert (await ask(site, path)).status == 200
        for path, body in [("/v2", None), ("/v2/models/irv2", None), (INFER, ASKED)]:
            for headers in ({}, {"Authorization": "Bearer another-token-of-length"}):
                refused = await ask(site, path, body, **headers)
                assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert "authorization: Bearer TOKEN" in refused.json["error"]
            allowed = await ask(site, path, body, Authorization=f"Bearer {TOKEN}")
            assert allowed.status == 200
        assert b'irv2_calls_total{caller="me"} 3.0' in site.server.metrics_text()

    scenario_with(bundle, scenario, http=HTTP, token_file=tokens)


def test_a_request_is_logged_with_its_caller_as_over_grpc(bundle, tmp_path, caplog):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"me {TOKEN}\n")

    async def scenario(site):
        await ask(site, "/v1/classify?id=7", jpeg(0), Authorization=f"Bearer {TOKEN}")

    with caplog.at_level("INFO"):
        scenario_with(bundle, scenario, http=HTTP, token_file=tokens, log_requests=True)
    line = "request method=http/Classify id=7 caller=me num_images=1 outcome=ok total_us="
    assert [each for each in caplog.messages if each.startswith(line) and "queue_us=" in each]


def test_a_body_over_the_limit_is_read_to_its_end_and_not_kept(bundle):
    async def scenario(site):
        refused = await ask(site, INFER, bytes(8_000_000))
        assert (refused.status, refused.headers["Retry-After"]) == (413, None)
        assert refused.json["error"] == "body: 8000000 bytes; expected at most 1000000"
        assert (await ask(site, INFER, ASKED)).status == 200

    scenario_with(bundle, scenario, http=HTTP)


def test_a_client_that_leaves_frees_its_place(bundle):
    async def scenario(site):
        await ask(site, INFER, ASKED)
        site.runner.seconds = 0.5
        for length, outcome in [(len(ASKED), "cancelled"), (len(ASKED) + 1, "unread")]:
            _, writer = await begin(site, length=length)
            await asyncio.sleep(0.1)
            writer.transport.abort()
            await until(lambda outcome=outcome: outcomes(site, outcome) == 1)
        assert (await ask(site, INFER, ASKED)).status == 200

    scenario_with(bundle, scenario, http=HTTP)


def test_a_body_that_does_not_come_in_time_ends_the_connection(bundle):
    async def scenario(site):
        reader, writer = await begin(site, length=len(ASKED) + 1)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert outcomes(site, "deadline_exceeded") == 1
        writer.close()

    scenario_with(bundle, scenario, http=HTTP, default_deadline_ms=300)


def test_open_requests_are_not_closed_for_others_and_leave_room_for_probes(bundle):
    async def scenario(site):
        await ask(site, INFER, ASKED)
        site.runner.seconds = 0.01
        half = len(ASKED) // 2
        opened = [await begin(site, ASKED[:half], len(ASKED)) for _ in range(MAX_OPEN)]
        await asyncio.sleep(0.1)
        refused = await ask(site, INFER, ASKED)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        host, _, port = site.server.description["http"].rpartition(":")
        address = host, int(port)
        silent = [await asyncio.open_connection(*address) for _ in range(MAX_CONNECTIONS)]
        assert (await ask(site, "/readyz")).status == 200
        for _, writer in opened:
            writer.write(ASKED[half:])
        for reader, _ in opened:
            assert await asyncio.wait_for(reader.readline(), 10) == b"HTTP/1.1 200 OK\r\n"
        for _, writer in opened + silent:
            writer.close()

    scenario_with(bundle, scenario, http=HTTP)


def test_a_server_that_stops_answers_what_it_has_admitted(bundle):
    async def scenario(site):
        await ask(site, INFER, ASKED)
        site.runner.seconds = 0.3
        waiting = asyncio.create_task(ask(site, INFER, ASKED))
        await asyncio.sleep(0.1)
        await site.server.stop()
        assert (await waiting).status == 200

    scenario_with(bundle, scenario, http=HTTP)
