"""A server's life around its requests, in this process."""

import asyncio
import dataclasses
import os
import signal
import time

import pytest
from google.rpc import error_details_pb2
from serving_site import OPTIONS, detail, request, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.serve.server import Server, serve_until_signal


def test_limits_below_the_photographs_of_the_warm_up_are_only_for_clients(tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle"))

    async def scenario(site):
        [result] = (await site.stub.Classify(request(0))).results
        info = detail(result.error, error_details_pb2.ErrorInfo)
        assert info.reason == "TOO_LARGE"

    scenario_with(bundle, scenario, max_image_bytes=1, max_image_pixels=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_warms_up_ends_it_unannounced(tmp_path, number):
    class StoppedServer(Server):
        async def start(self) -> None:
            os.kill(os.getpid(), number)
            await super().start()

    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    options = dataclasses.replace(OPTIONS, grace_s=60)
    announced: list[Server] = []
    began = time.monotonic()
    work = serve_until_signal(bundle, options, announced.append, StoppedServer)
    assert asyncio.run(work) == number
    assert time.monotonic() - began < 30
    assert not announced
