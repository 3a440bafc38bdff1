"""Front ends that hang or can't start, as real processes of an engine in this one."""

import asyncio
import os
import resource
import signal
import socket
import sys
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from serving_site import OPTIONS, has_ipv6, request, until
from tiny_bundle import write_tiny_bundle

from irv2.errors import Irv2Error
from irv2.serve.access.address import Address
from irv2.serve.front_ends.own_front_end import OwnFrontEnd
from irv2.serve.front_ends.shared_model import SharedModel
from irv2.serve.front_ends.supervisor import FrontEnds
from irv2.serve.operations.metrics import Metrics
from irv2.serve.pipeline.engine import open_model
from irv2.v1 import classifier_pb2_grpc
from irv2.v1.classifier_pb2 import ClassifyResponse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory without a name: Linux")
TOKEN = "0123456789abcdef"


async def ignore_health() -> None:
    """No load balancer asks for health."""


def scenario_with(tmp_path, scenario, answer_s: float = 20.0, **options) -> None:
    async def run():
        bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
        given = replace(OPTIONS, num_front_ends=2, **options)
        model = SharedModel(open_model(bundle, given), given, Metrics(), ignore_health)
        folder = tmp_path / "metrics"
        folder.mkdir()
        own = OwnFrontEnd(given, Metrics()) if given.http else None
        front_ends = FrontEnds(given, model, str(folder), own, ask_every_s=0.1, answer_s=answer_s)
        try:
            with given.listen.ready_for_grpc() as names:
                port = front_ends.bind(names, given.listen)
            await front_ends.start()
            await model.start()
            await front_ends.use(model)
            await scenario(front_ends, f"127.0.0.1:{port}")
        finally:
            await front_ends.stop()
            await model.close()
            await front_ends.close()

    asyncio.run(run())


async def answer(address: str) -> ClassifyResponse:
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, own) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        metadata = [("authorization", f"Bearer {TOKEN}")]
        return await stub.Classify(request(0), timeout=20, metadata=metadata, wait_for_ready=True)


async def is_answered(address: str) -> bool:
    [result] = (await answer(address)).results
    return bool(result.scores)


@contextmanager
def no_file_left():
    """This process can open none."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.dup(0)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_one_that_hangs_is_replaced(tmp_path):
    async def scenario(front_ends, address):
        hanging, other = front_ends.pids
        os.kill(hanging, signal.SIGSTOP)
        await until(lambda: len(front_ends.pids) == 2 and hanging not in front_ends.pids)
        assert other in front_ends.pids
        assert all([await is_answered(address) for _ in range(8)])

    scenario_with(tmp_path, scenario, answer_s=2.0)


def test_one_that_cannot_get_a_new_model_is_replaced_by_one_that_has_it(tmp_path):
    other = write_tiny_bundle(tmp_path / "other.bundle", seed=1)
    given = replace(OPTIONS, num_front_ends=2)

    async def scenario(front_ends, address):
        model = SharedModel(open_model(other, given), given, Metrics(), ignore_health)
        await model.start()
        before = set(front_ends.pids)
        with no_file_left():
            await front_ends.use(model)
        await until(lambda: len(front_ends.pids) == 2 and not before & set(front_ends.pids))
        assert (await answer(address)).model_id == model.description.id
        await front_ends.stop()
        await model.close()

    scenario_with(tmp_path, scenario)


def test_a_model_that_could_not_answer_over_http_is_not_taken_and_the_one_before_goes_on(tmp_path):
    other, http = write_tiny_bundle(tmp_path / "other.bundle", seed=1), Address("127.0.0.1", 0)
    given = replace(OPTIONS, num_front_ends=2, http=http)

    async def scenario(front_ends, address):
        before = (await answer(address)).model_id, front_ends.pids
        model = SharedModel(open_model(other, given), given, Metrics(), ignore_health)
        with no_file_left(), pytest.raises(Irv2Error, match="can't answer over HTTP"):
            await front_ends.use(model)
        await model.close()
        assert before == ((await answer(address)).model_id, front_ends.pids)

    scenario_with(tmp_path, scenario, http=http)


def test_one_that_cannot_start_is_tried_again_and_stops_no_other(tmp_path, caplog):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"one {TOKEN}\n")

    async def scenario(front_ends, address):
        tokens.write_text("")  # as it is while an editor writes it
        killed, other = front_ends.pids
        os.kill(killed, signal.SIGKILL)
        await until(lambda: "front_end_failed front_end=" in caplog.text)
        assert other in front_ends.pids
        tokens.write_text(f"one {TOKEN}\n")
        await until(lambda: "front_end_started front_end=" in caplog.text)
        assert all([await is_answered(address) for _ in range(8)])
        assert "holds no token" in caplog.text

    caplog.set_level("INFO")
    scenario_with(tmp_path, scenario, token_file=tokens)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_all_of_ipv4_is_nothing_of_ipv6_also_for_one_that_is_replaced(tmp_path, caplog):
    async def scenario(front_ends, address):
        port = int(address.rpartition(":")[2])
        os.kill(front_ends.pids[0], signal.SIGKILL)
        await until(lambda: "front_end_started front_end=" in caplog.text)
        assert all([await is_answered(address) for _ in range(8)])
        for _ in range(8):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("::1", port))

    caplog.set_level("INFO")
    scenario_with(tmp_path, scenario, listen=Address("0.0.0.0", 0), insecure=True)


def test_a_stop_right_after_one_was_lost_waits_for_no_other(tmp_path, caplog):
    async def scenario(front_ends, address):
        os.kill(front_ends.pids[0], signal.SIGKILL)
        await until(lambda: "front_end_lost front_end=1" in caplog.text)

    scenario_with(tmp_path, scenario)
    assert "Traceback" not in caplog.text


def test_if_one_cannot_start_at_first_the_reason_is_told_and_all_end(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("one short\n")

    async def never(front_ends, address):
        raise AssertionError

    with pytest.raises(Irv2Error, match="no token, or a short one"):
        scenario_with(tmp_path, never, token_file=tokens)
