"""Clients that misbehave hurt only themselves: a real server, asked badly, answers the next one."""

import asyncio
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager

import grpc
import pytest
from fuzzing import (
    Inputs,
    fuzz,
    fuzz_connections,
    fuzz_http,
    memory_mb,
    num_open_files,
    settled_open_files,
)
from process_output import read_line
from project import ROOT
from serving_process import LOOPBACK, get, serving
from serving_site import jpeg, request
from tiny_bundle import SIDE, write_tiny_bundle

from irv2.client import Client
from irv2.v1 import classifier_pb2_grpc
from irv2.v1.classifier_pb2 import ClassifyStreamRequest

NUM_INPUTS = 800  # of 100,000 in tests/long/fuzz_server.py
LONG_NAME = 34301  # an answer that quoted it did not fit into a header


@pytest.fixture
def server(tmp_path):
    with serving(write_tiny_bundle(tmp_path / "tiny.bundle"), "--http", LOOPBACK) as process:
        process.log = []
        reading = threading.Thread(target=lambda: process.log.extend(process.popen.stderr))
        reading.start()
        assert_it_answers(process)
        yield process
        process.popen.kill()
        reading.join()
        assert not [line for line in process.log if "Traceback" in line]


def assert_it_answers(process, within_s: float = 10.0) -> None:
    with Client(process.address) as client:
        (result,) = client.classify([jpeg(0)], timeout_s=within_s)
        assert result.scores


def wait_until_nothing_is_queued(process) -> None:
    until = time.monotonic() + 10
    while "irv2_queue_images 0.0" not in get(process.http, "/metrics")[1]:
        assert time.monotonic() < until, "requests of nobody are still queued"
        time.sleep(0.05)


def test_malformed_messages_and_images_get_the_right_code_each(server):
    inputs = Inputs(0, SIDE)
    report = asyncio.run(fuzz(server.address, inputs, range(NUM_INPUTS)))
    assert report.wrong == []
    assert report.num_inputs == NUM_INPUTS
    assert asyncio.run(fuzz(server.address, inputs, range(LONG_NAME, LONG_NAME + 1))).wrong == []
    seen = {"INVALID_ARGUMENT", "TRUNCATED", "NOT_AN_IMAGE", "TOO_MANY_PIXELS", "scores"}
    assert seen <= report.outcomes.keys(), "the corpus no longer reaches what it is for"
    assert_it_answers(server)


def test_connections_that_speak_something_else_leave_nothing_behind(server):
    before = num_open_files(server.popen.pid)
    fuzz_connections(server.address, 0, 60)
    assert_it_answers(server)
    assert settled_open_files(server.popen.pid, before) <= before


def test_the_operators_port_bears_any_request(server):
    before = num_open_files(server.popen.pid)
    assert fuzz_http(server.http, 0, 200) == []
    assert get(server.http, "/healthz")[0] == 200
    assert settled_open_files(server.popen.pid, before) <= before


@contextmanager
def more_connections_than_files(server, num_files: int):
    """To the operators' port of a server that may open `num_files` from now on."""
    resource.prlimit(server.popen.pid, resource.RLIMIT_NOFILE, (num_files, num_files))
    host, _, port = server.http.rpartition(":")
    with ExitStack() as stack:
        for _ in range(2 * num_files):
            silent = stack.enter_context(socket.socket())
            silent.setblocking(False)  # no place in the backlog is waited for
            silent.connect_ex((host, int(port)))
        time.sleep(1)
        yield
    assert get(server.http, "/healthz")[0] == 200


def test_the_operators_port_leaves_files_for_other_connections(server):
    with more_connections_than_files(server, 200):
        assert get(server.http, "/healthz")[0] == 200
        assert num_open_files(server.popen.pid) < 200
        assert_it_answers(server)
    assert not server.log


def test_where_no_file_is_left_for_the_operators_port_requests_are_answered(server):
    with Client(server.address) as client:
        client.classify([jpeg(0)])
        with more_connections_than_files(server, 40):
            (result,) = client.classify([jpeg(0)], timeout_s=5)
            assert result.scores
    assert_it_answers(server)
    assert set(server.log) == {"http_accept_failed error=[Errno 24] Too many open files\n"}


def test_two_hundred_connections_are_served(server):
    async def ask_all():
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options))
                for _ in range(200)
            ]
            stubs = map(classifier_pb2_grpc.ClassifierStub, channels)
            return await asyncio.gather(*(s.Classify(request(1), timeout=30) for s in stubs))

    before = num_open_files(server.popen.pid)
    assert all(response.results[0].scores for response in asyncio.run(ask_all()))
    assert settled_open_files(server.popen.pid, before) <= before


def test_half_open_connections_delay_nobody(server):
    host, _, port = server.address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(50)]
    for connection in silent[::2]:
        connection.sendall(b"PRI * HTTP/2.0\r\n")  # half a preface
    assert_it_answers(server)
    for connection in silent:
        connection.close()


def test_a_client_that_is_killed_leaves_no_work_behind(server):
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); from serving_site import request; "
        "import grpc; from irv2.v1.classifier_pb2_grpc import ClassifierStub; "
        "stub = ClassifierStub(grpc.insecure_channel(sys.argv[1])); "
        "calls = [stub.Classify.future(request(*range(20))) for _ in range(12)]; "
        "print('sent', flush=True); [call.result() for call in calls * 1000]"
    )
    helpers = str(ROOT / "tests/helpers")
    command = [sys.executable, "-c", program, server.address, helpers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert read_line(client.stdout) == "sent\n"
        client.kill()
    wait_until_nothing_is_queued(server)
    assert_it_answers(server)


def test_a_stream_that_is_not_read_is_not_read_on_by_the_server(server):
    """Back-pressure: its answers wait in buffers of a known size, and then its requests do."""

    async def write_and_never_read():
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = classifier_pb2_grpc.ClassifierStub(channel).ClassifyStream()
            num_written = 0
            try:
                async with asyncio.timeout(2.0):
                    while True:
                        message = request(0, id=str(num_written), top_k=10)
                        await call.write(ClassifyStreamRequest(request=message))
                        num_written += 1
            except TimeoutError:
                pass
            await asyncio.to_thread(assert_it_answers, server)
            call.cancel()
            return num_written

    before_mb = memory_mb(server.popen.pid)
    assert asyncio.run(write_and_never_read()) > 32
    wait_until_nothing_is_queued(server)
    assert memory_mb(server.popen.pid) < before_mb + 50  # 64 kB windows, 64 images in work


def test_a_server_that_was_suspended_drops_what_expired_and_answers_the_next(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        stub.Classify(request(0), timeout=10)
        before = num_images_run(server)
        server.popen.send_signal(signal.SIGSTOP)
        with pytest.raises(grpc.RpcError) as late:
            stub.Classify(request(0), timeout=0.5)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        server.popen.send_signal(signal.SIGCONT)
        assert stub.Classify(request(0), timeout=10).results[0].scores
    wait_until_nothing_is_queued(server)
    assert num_images_run(server) == before + 1


def num_images_run(process) -> float:
    text = get(process.http, "/metrics")[1]
    return float(re.search(r"^irv2_batch_images_sum (\S+)", text, re.MULTILINE)[1])
