"""Several front ends before one engine: what one process does, and what happens as they die."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from certificates import issue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_process import LOOPBACK, Process, get, replace_bundle, serving
from serving_site import jpeg
from tiny_bundle import SIDE, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.inference import open_inference_pb2 as oip
from irv2.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from irv2.v1.classifier_pb2 import ClassifyRequest, ClassifyStreamRequest, Image
from irv2.v1.classifier_pb2_grpc import ClassifierStub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory without a name: Linux")
TOKEN = "0123456789abcdef"
TWO = ("--front-ends", "2", "--http", LOOPBACK, "--log-requests")
IMAGES = "irv2_batch_images_sum"
NEW = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own


class Site:
    """A server of two front ends, what it logs, and a channel to each of them."""

    def __init__(
        self, process: Process, stack: ExitStack, token: str = "", ca: Path | None = None
    ) -> None:
        self.process, self._stack, self._ca = process, stack, ca
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        self.lines.extend(iter(self.process.popen.stderr.readline, ""))

    def wait_for_line(self, pattern: str, timeout_s: float = 30) -> re.Match:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for line in self.lines:
                if found := re.search(pattern, line):
                    return found
            time.sleep(0.01)
        raise AssertionError(f"no line {pattern!r} in {self.lines}")

    def connect(self) -> grpc.Channel:
        if self._ca is None:
            channel = grpc.insecure_channel(self.process.address, NEW)
        else:
            credentials = grpc.ssl_channel_credentials(self._ca.read_bytes())
            channel = grpc.secure_channel(self.process.address, credentials, NEW)
        return self._stack.enter_context(channel)

    def ask(self, channel: grpc.Channel, request_id: str = "", number: int = 0):
        request = ClassifyRequest(images=[Image(encoded=jpeg(number))], id=request_id)
        return self.classify(channel, request)

    def classify(self, channel: grpc.Channel, request: ClassifyRequest):
        return ClassifierStub(channel).Classify(request, timeout=20, metadata=self.metadata)

    def value(self, name: str) -> float:
        """The sum of the metrics whose lines begin with `name`."""
        lines = get(self.process.http, "/metrics", self._ca)[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def channels(self) -> dict[int, grpc.Channel]:
        """A channel to each front end, by its number in the log."""
        found: dict[int, grpc.Channel] = {}
        for i in range(100):
            channel = self.connect()
            request_id = f"find-{time.monotonic_ns()}-{i}"
            self.ask(channel, request_id)
            number = self.wait_for_line(rf"id={request_id} .* front_end=(\d)$")[1]
            if found.setdefault(int(number), channel) is not channel:
                channel.close()
            if len(found) == 2:
                return found
        raise AssertionError("100 connections went to one of them")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("front_ends") / "tiny.bundle")


@pytest.fixture
def two(tmp_path):
    """A server that the test may harm."""
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    with serving(bundle, *TWO, "--grace-s", "0.3") as process, ExitStack() as stack:
        yield Site(process, stack)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_they_answer_as_one_server_and_count_as_one(bundle, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"one {TOKEN}\n")
    issued = issue(tmp_path)
    options = (*TWO, *issued.server_options, "--token-file", str(tokens))
    with serving(bundle, *options) as process, ExitStack() as stack:
        assert " front_ends=2 " in process.ready_line
        site = Site(process, stack, TOKEN, issued.ca)
        channels = site.channels()
        found = check_answers(site, channels, bundle)
        ok, batches = site.value('irv2_requests_total{outcome="ok"}'), site.value(IMAGES)
        assert site.value('irv2_image_errors_total{reason="NOT_AN_IMAGE"}') == 2
        answered = batches - 8  # of the requests, two had 6 images each, and two had none to run
        assert ok == answered + 2, "and two calls have asked for statistics"
        assert site.value("irv2_queue_images ") == 0
        assert list(found.values()) == [(answered, batches)] * 2, "whichever is asked"
        one = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1]) * 4096
        assert site.value("process_resident_memory_bytes") > 2 * one
        check_http(site, bundle, issued.ca)
        tokens.write_text("other fedcba9876543210\n")
        for channel in channels.values():
            with pytest.raises(grpc.RpcError) as refused:
                site.ask(channel)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert site.value("irv2_unauthenticated_calls_total") == 3, "and one over HTTP"


def check_answers(site: "Site", channels: dict[int, grpc.Channel], bundle: Path) -> dict:
    """What each front end counts, after each has answered as the bundle does."""
    images = [Image(encoded=jpeg(number)) for number in range(6)]
    expected = Bundle.open(bundle).classify([image.encoded for image in images], top_k=1)
    for channel in channels.values():
        request = ClassifyRequest(images=images, top_k=1)
        response = site.classify(channel, request)
        found = [result.scores[0].index for result in response.results]
        assert found == [result.scores[0].index for result in expected]
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="irv2.v1.Classifier"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ready = GRPCInferenceServiceStub(channel).ServerReady
        assert ready(oip.ServerReadyRequest(), metadata=site.metadata).ready
        [result] = site.classify(channel, ClassifyRequest(images=[Image(encoded=b"no")])).results
        assert result.error.message
    counted = {}
    for number, channel in channels.items():
        statistics = GRPCInferenceServiceStub(channel).ModelStatistics
        [sums] = statistics(oip.ModelStatisticsRequest(), metadata=site.metadata).model_stats
        counted[number] = (sums.inference_stats.success.count, sums.inference_count)
    return counted


def check_http(site: "Site", bundle: Path, ca: Path) -> None:
    """The engine's process answers over HTTP, and counts beside the others."""
    url, context = f"https://{site.process.http}", ssl.create_default_context(cafile=ca)
    ok, [expected] = 'irv2_requests_total{outcome="ok"}', Bundle.open(bundle).classify([jpeg(1)])
    before = site.value(ok)

    def answer(path: str, body: bytes | None, **headers: str) -> dict:
        headers |= {name.title(): value for name, value in site.metadata}
        request = urllib.request.Request(f"{url}{path}", body, headers)
        with urllib.request.urlopen(request, timeout=20, context=context) as response:
            return json.load(response)

    [result] = answer("/v1/classify", jpeg(1))["results"]
    assert [score["label"] for score in result["scores"]] == [s.label for s in expected.scores]
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, SIDE, SIDE, 3]}
    tensor["data"] = [0] * 3 * SIDE**2
    question = json.dumps({"inputs": [tensor]}).encode()
    assert answer("/v2/models/irv2/infer", question)["outputs"][0]["shape"] == [1, 10]
    assert answer("/v2/models/irv2", None)["name"] == "irv2"
    assert site.value(ok) == before + 2
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/v1/classify", b"x", timeout=20, context=context)


def test_a_killed_front_end_costs_its_own_calls_alone_and_is_replaced(two):
    channels = two.channels()
    pids = children(two.process.popen.pid)
    streams = {}
    for number, channel in channels.items():
        hold = threading.Event()

        def messages(hold=hold):
            request = ClassifyRequest(images=[Image(encoded=jpeg(0))], id="first")
            yield ClassifyStreamRequest(request=request)
            hold.wait(60)
            request = ClassifyRequest(images=[Image(encoded=jpeg(0))], id="second")
            yield ClassifyStreamRequest(request=request)

        streams[number] = (ClassifierStub(channel).ClassifyStream(messages()), hold)
        assert next(streams[number][0]).id == "first"
    counted = two.value('irv2_requests_total{outcome="ok"}')
    os.kill(pids[0], signal.SIGKILL)
    lost = int(two.wait_for_line(rf"front_end_lost front_end=(\d) pid={pids[0]} status=-9")[1])
    other = 3 - lost
    with pytest.raises(grpc.RpcError) as end:
        next(streams[lost][0])
    assert end.value.code() is grpc.StatusCode.UNAVAILABLE
    streams[other][1].set()
    assert next(streams[other][0]).id == "second"
    streams[lost][1].set()
    assert two.value('irv2_requests_total{outcome="ok"}') >= counted
    two.wait_for_line(rf"front_end_started front_end={lost} pid=")
    assert set(two.channels()) == {1, 2}
    health = health_pb2_grpc.HealthStub(two.connect())
    answer = health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert two.value('irv2_requests_total{outcome="ok"}') > counted
    assert get(two.process.http, "/readyz")[0] == 200
    assert "<html" in get(two.process.http, "/")[1]
    assert json.loads(get(two.process.http, "/v1/model")[1])["model"]["id"]


def http_model_id(address: str) -> str:
    """The model that answers over HTTP."""
    url = f"http://{address}/v1/classify"
    with urllib.request.urlopen(url, jpeg(0), timeout=20) as response:
        return json.load(response)["model_id"]


def test_new_models_and_sigterm_lose_no_request(two):
    process, failures, leave = two.process, [], threading.Event()
    bundle = Path(process.popen.args[4])

    def keep_asking_over_http() -> None:
        while not leave.is_set():
            try:
                http_model_id(process.http)
            except Exception as error:
                failures.append(error)

    def keep_asking(channel: grpc.Channel) -> None:  # no client of ours: it would ask again
        while not leave.is_set():
            try:
                [result] = two.ask(channel).results
                assert result.scores
            except Exception as error:
                failures.append(error)

    channels = two.channels()
    threads = [threading.Thread(target=keep_asking, args=(each,)) for each in channels.values()]
    threads.append(threading.Thread(target=keep_asking_over_http))
    for thread in threads:
        thread.start()
    for seed in (1, 2, 3):
        model_id = replace_bundle(bundle, seed=seed)
        process.popen.send_signal(signal.SIGHUP)
        two.wait_for_line(f"reloaded model={model_id[:12]} ")
        for channel in channels.values():
            assert two.ask(channel).model_id == model_id
        assert http_model_id(process.http) == model_id
    for _ in range(3):
        two.wait_for_line("closed model=")
    process.popen.send_signal(signal.SIGTERM)
    two.wait_for_line("stopping ")
    leave.set()
    for thread in threads:
        thread.join()
    assert process.popen.wait(timeout=20) == 0
    assert not failures
    assert not any("Traceback" in line for line in two.lines)


def test_a_watched_bundle_and_renewed_certificates_reach_all_of_them(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    issued = issue(tmp_path / "tls")
    options = (*TWO, "--watch", *issued.server_options)
    with serving(bundle, *options) as process, ExitStack() as stack:
        site = Site(process, stack, ca=issued.ca)
        channels = site.channels()
        model_id = replace_bundle(bundle, seed=1)
        site.wait_for_line(f"reloaded model={model_id[:12]} ")
        for channel in channels.values():
            assert site.ask(channel).model_id == model_id
        issue(tmp_path / "tls")  # of another authority: connections from now on trust it alone
        for channel in site.channels().values():
            assert site.ask(channel).model_id == model_id
        assert get(process.http, "/readyz", issued.ca)[0] == 200
        for channel in channels.values():  # what is open stays so
            assert site.ask(channel).model_id == model_id


def test_nothing_outlives_the_process_that_was_started(bundle):
    with serving(bundle, *TWO) as process:
        pids = children(process.popen.pid)
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGSTOP)  # not even one that hangs
        process.popen.kill()
        process.popen.wait()
        until = time.monotonic() + 10
        while any(map(lives, pids)):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_ctrl_c_of_a_terminal_reaches_all_processes_and_ends_with_130(bundle):
    leader = ("setsid",)
    with serving(bundle, *TWO, "--grace-s", "60", prefix=leader) as process:
        pids = children(process.popen.pid)
        os.killpg(process.popen.pid, signal.SIGINT)
        _, stderr = process.popen.communicate(timeout=30)
        assert (process.popen.returncode, "Traceback" in stderr) == (130, False)
        assert not any(map(lives, pids))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--front-ends", "0"], "--front-ends: 0; expected 1 to 64, or auto"),
        (["--front-ends", "2", "--listen", "unix:/tmp/x"], "expected 1 with --listen unix:/tmp/x"),
        (["--front-ends", "2", "--listen", "USED"], "expected a free port"),
        (["--front-ends", "2", "--token-file", "EMPTY"], "holds no token"),
    ],
)
def test_what_they_cannot_do_is_one_line(options, expected, bundle, tmp_path):
    (tmp_path / "empty").touch()
    with serving(bundle, "--front-ends", "2") if "USED" in options else ExitStack() as other:
        places = {"USED": getattr(other, "address", ""), "EMPTY": str(tmp_path / "empty")}
        arguments = [places.get(each, each) for each in options]
        command = [sys.executable, "-m", "irv2", "serve", str(bundle), "--listen", LOOPBACK]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    lines = done.stderr.splitlines()
    assert expected in lines[-1]
    assert len(lines) == 1, done.stderr
