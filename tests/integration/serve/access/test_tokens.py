"""Who may ask a server with tokens."""

import asyncio
import re

import grpc
import numpy as np
import pytest
from fuzzing import mutate, printable
from grpc_health.v1 import health_pb2
from serving_site import request, scenario_with

from irv2.errors import RequestError
from irv2.v1.classifier_pb2 import ClassifyStreamRequest

TOKEN = "correct horse battery staple".replace(" ", "-")
OTHER = "another-token-of-some-length"


def test_only_a_token_of_the_file_opens_the_door(bundle, tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(f"# who may ask\nalice {TOKEN}\n\nbob {OTHER}\n")

    async def scenario(site):
        assert await site.ask(token=TOKEN)
        assert await site.ask(token=OTHER)
        for wrong in (None, "", TOKEN[:-1], f"alice:{TOKEN}"):
            with pytest.raises(RequestError, match="takes no request without a valid token"):
                await site.ask(token=wrong)
        for call in (site.stub.Classify(request(0)), site.stub.ClassifyStream()):
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        health = await site.health.Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        text = site.server.metrics_text().decode()
        assert 'irv2_calls_total{caller="alice"} 2.0' in text  # GetModel and Classify
        assert 'irv2_calls_total{caller="bob"} 2.0' in text
        assert "irv2_unauthenticated_calls_total 6.0" in text
        assert TOKEN not in text + caplog.text

    caplog.set_level("INFO")
    scenario_with(bundle, scenario, token_file=path, log_requests=True)
    assert "caller=alice" in caplog.text


def test_no_damaged_token_opens_the_door(bundle, tmp_path, caplog):
    path, rng = tmp_path / "tokens", np.random.default_rng(0)
    path.write_text(f"alice {TOKEN}\n")
    values = [printable(mutate(f"Bearer {TOKEN}".encode(), rng)) for _ in range(300)]
    damaged = [value for value in values if not re.fullmatch(f"(?i:bearer) +{TOKEN} *", value)]
    assert len(damaged) > 250

    async def scenario(site):
        for value in damaged:
            call = site.stub.Classify(request(0), metadata=(("authorization", value),))
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED, value
        assert await site.ask(token=TOKEN)

    scenario_with(bundle, scenario, token_file=path)
    assert not caplog.records


def test_tokens_are_taken_in_and_withdrawn_without_a_restart(bundle, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")

    async def scenario(site):
        path.write_text("alice")  # half written
        assert await site.ask(token=TOKEN)
        path.write_text(f"bob {OTHER}\n")
        assert await site.ask(token=OTHER)
        with pytest.raises(RequestError, match="without a valid token"):
            await site.ask(token=TOKEN)

    scenario_with(bundle, scenario, token_file=path)


def test_a_token_whose_file_was_emptied_opens_no_door_soon(bundle, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")

    async def scenario(site):
        assert await site.ask(token=TOKEN)
        path.write_text("")
        assert await site.ask(token=TOKEN), "it may be half written"
        with pytest.raises(RequestError, match="without a valid token"):
            await ask_until_refused(site)

    async def ask_until_refused(site):
        async with asyncio.timeout(30):
            while await site.ask(token=TOKEN):
                await asyncio.sleep(0.1)

    scenario_with(bundle, scenario, token_file=path)


def test_a_stream_with_a_token_is_answered(bundle, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")

    async def scenario(site):
        call = site.stub.ClassifyStream(metadata=(("authorization", f"Bearer {TOKEN}"),))
        await call.write(ClassifyStreamRequest(request=request(0, id="0")))
        assert (await call.read()).response.results[0].scores
        call.cancel()

    scenario_with(bundle, scenario, token_file=path)
