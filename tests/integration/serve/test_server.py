"""A server's life around its requests, in this process."""

import os
import signal
import subprocess
import sys
import time

import pytest
from google.rpc import error_details_pb2
from project import ROOT
from serving_site import detail, request, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle


def test_limits_below_the_photographs_of_the_warm_up_are_only_for_clients(tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle"))

    async def scenario(site):
        [result] = (await site.stub.Classify(request(0))).results
        info = detail(result.error, error_details_pb2.ErrorInfo)
        assert info.reason == "TOO_LARGE"

    scenario_with(bundle, scenario, max_image_bytes=1, max_image_pixels=1)


# In a process of its own: what goes wrong with a signal would end the one that runs the tests.
SIGNALLED = """
import asyncio, dataclasses, os, sys
from pathlib import Path
from serving_site import OPTIONS
from irv2.serve.server import Server, serve_until_signal

class Signalled(Server):
    async def start(self):
        os.kill(os.getpid(), int(sys.argv[2]))
        await super().start()

options, announced = dataclasses.replace(OPTIONS, grace_s=60), []
work = serve_until_signal(Path(sys.argv[1]), options, announced.append, Signalled)
print(int(asyncio.run(work)), len(announced))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_warms_up_ends_it_unannounced(tmp_path, number):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    command = [sys.executable, "-X", "faulthandler", "-c", SIGNALLED, str(bundle), str(int(number))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers")}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"{int(number)} 0\n"), done.stderr
    assert time.monotonic() - began < 30  # no load balancer knows of it: there is no grace
