"""Two servers behind a client that lets them take turns, restarted one after the other."""

import signal
import threading
import time
from contextlib import ExitStack

import grpc
import pytest
from serving_process import LOOPBACK, Process, get, load_on, serving
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.v1.classifier_pb2 import ClassifyRequest, ClassifyStreamRequest, Image
from irv2.v1.classifier_pb2_grpc import ClassifierStub


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("rolling") / "tiny.bundle")


def num_answered(process: Process) -> float:
    lines = get(process.http, "/metrics")[1].splitlines()
    counts = [
        line.split()[1] for line in lines if line.startswith('irv2_requests_total{outcome="ok"}')
    ]
    return float(counts[0]) if counts else 0.0


def wait_until_it_answers(process: Process) -> None:
    before = num_answered(process)
    while num_answered(process) < before + 3:
        assert process.popen.poll() is None


@pytest.mark.slow
def test_a_rolling_restart_behind_a_round_robin_client_loses_nothing(bundle):
    options = ("--grace-s", "0.7", "--http", LOOPBACK)
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(bundle, *options)) for _ in range(2)]
        failures = stack.enter_context(load_on([server.address for server in servers]))
        for old in servers:
            wait_until_it_answers(old)
            assert old.stop(signal.SIGTERM)[0] == 0
            new = stack.enter_context(serving(bundle, *options, "--listen", old.address))
            wait_until_it_answers(new)
        assert not failures


def test_open_requests_of_a_stream_are_answered_before_the_server_stops(bundle):
    images = [Image(encoded=jpeg(number)) for number in range(20)]
    are_sent, leave = threading.Event(), threading.Event()

    def messages():
        for number in range(3):
            request = ClassifyRequest(id=str(number), images=images)
            yield ClassifyStreamRequest(request=request)
        are_sent.set()
        leave.wait()  # a client that would send more, at some time

    with serving(bundle, "--grace-s", "0.5") as process:  # time to come by, on a busy machine
        with grpc.insecure_channel(process.address) as channel:
            answers = ClassifierStub(channel).ClassifyStream(messages())
            answered = {next(answers).id}
            assert are_sent.wait(timeout=30)
            started_at = time.monotonic()
            process.popen.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as end:
                answered.update(answer.id for answer in answers)
            leave.set()
        assert end.value.code() is grpc.StatusCode.UNAVAILABLE
        assert process.popen.wait(timeout=20) == 0
        assert time.monotonic() - started_at < 5, "an idle stream delays nobody"
    assert answered == {"0", "1", "2"}
