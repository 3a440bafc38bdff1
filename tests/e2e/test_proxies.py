"""Servers behind nginx, HAProxy and Envoy, as the files in deploy/proxies configure them.

They prove what docs/proxies.md says. They are skipped where a proxy is not installed, and in CI.
"""

import asyncio
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
import pytest
import simplejpeg
from certificates import issue
from proxies import FILES, configuration, program, proxied
from serving_process import LOOPBACK, Process, get, load_on, replace_bundle, serving
from serving_site import jpeg, request, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client, Tls
from irv2.errors import MessageTooLarge, NotServing, Overloaded, RequestError
from irv2.protocol import error_from_call
from irv2.serve.access.address import Address
from irv2.serve.access.tls import TlsFiles
from irv2.v1.classifier_pb2 import ClassifyRequest, ClassifyStreamRequest, Image
from irv2.v1.classifier_pb2_grpc import ClassifierStub

pytestmark = pytest.mark.slow

PHOTO = simplejpeg.encode_jpeg(
    np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8), quality=95
)  # 0.6 MB
SLOW_S = 1.5


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    return issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def place(tmp_path):
    return write_tiny_bundle(tmp_path / "tiny.bundle")


@pytest.fixture
def behind(place, issued, tmp_path):
    """Calls a function with the address of a proxy before a server in the test's process.

    Returns the sizes of the batches that its engine ran.
    """

    def run(kind, ask, edits=None, seconds=0.0, proxy_issued=issued, **options):
        program(kind)
        sizes = []

        async def scenario(site):
            site.runner.seconds, site.runner.sizes = seconds, sizes
            found = re.search(r"^ready (\S+) .*http=(\S+)", site.server.ready_line)

            def ask_in_a_thread():
                with proxied(kind, [found.groups()] * 2, proxy_issued, tmp_path, edits) as proxy:
                    ask(proxy.address, issued)

            await asyncio.to_thread(ask_in_a_thread)

        scenario_with(
            Bundle.open(place),
            scenario,
            **{
                "http": Address("127.0.0.1", 0),
                "tls": TlsFiles(certificate=issued.certificate, key=issued.key),
                "max_message_bytes": 4_000_000,
                "max_image_bytes": 1_000_000,
                **options,
            },
        )
        return sizes

    return run


@pytest.fixture
def two_servers(place, issued, tmp_path):
    """A function that starts two servers as processes, and a proxy of a kind before them."""

    @contextmanager
    def start(kind, *options, edits=None):
        program(kind)
        with ExitStack() as stack:
            command = (place, *issued.server_options, "--http", LOOPBACK, *options)
            servers = [stack.enter_context(serving(*command)) for _ in range(2)]
            addresses = [(server.address, server.http) for server in servers]
            yield stack.enter_context(proxied(kind, addresses, issued, tmp_path, edits)), servers

    return start


# What is asked of a proxy. Each raises a RequestError if it gets no good answer.


def a_photo(address: str, issued) -> None:
    with Client(address, tls=Tls(ca=issued.ca)) as client:
        assert client.classify([jpeg(0)], timeout_s=5)[0].scores


def a_slow_answer(address: str, issued) -> None:
    """Answered by an engine that takes SLOW_S."""
    with Client(address, tls=Tls(ca=issued.ca)) as client:
        client.model()  # by now the proxy's checks have found the server
    with channel_to(address, issued) as channel:
        try:
            assert ClassifierStub(channel).Classify(request(0), timeout=20).results[0].scores
        except grpc.RpcError as error:
            raise error_from_call(error, address) from error


def a_large_request(address: str, issued) -> None:
    """Of 1.8 MB."""
    with Client(address, tls=Tls(ca=issued.ca)) as client:
        assert all(result.scores for result in client.classify([PHOTO] * 3, timeout_s=20))


def a_stream_with_a_pause(address: str, issued) -> None:
    def requests():
        for number in range(2):
            yield ClassifyStreamRequest(request=request(number, id=str(number)))
            time.sleep(SLOW_S)

    with channel_to(address, issued) as channel:
        try:
            answers = list(ClassifierStub(channel).ClassifyStream(requests()))
        except grpc.RpcError as error:
            raise error_from_call(error, address) from error
    assert [answer.id for answer in answers] == ["0", "1"]


def channel_to(address: str, issued) -> grpc.Channel:
    """As any client of gRPC opens one, with none of the patience of ours."""
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(issued.ca.read_bytes()))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("ask", [a_photo, a_large_request, a_slow_answer, a_stream_with_a_pause])
def test_what_a_server_answers_comes_through(kind, ask, behind):
    behind(kind, ask, seconds=SLOW_S if ask is a_slow_answer else 0)


# A setting, what stands in its place, what is asked, and how it ends: docs/proxies.md says so.
LOSSES = [
    ("nginx", " http2;", ";", a_photo, NotServing, "NO_APPLICATION_PROTOCOL"),
    ("nginx", "client_max_body_size 0;", "", a_large_request, MessageTooLarge, "413"),
    ("nginx", "body_timeout 1h", "body_timeout 1s", a_stream_with_a_pause, RequestError, "RST"),
    ("nginx", "read_timeout 1h", "read_timeout 1s", a_stream_with_a_pause, RequestError, "RST"),
    ("nginx", "read_timeout 1h", "read_timeout 1s", a_slow_answer, NotServing, "504"),
    ("nginx", "grpcs://", "grpc://", a_photo, NotServing, "502"),
    ("haproxy", ".pem alpn h2", ".pem", a_photo, NotServing, "ALPN"),
    ("haproxy", "ssl alpn h2 ca", "ssl ca", a_photo, NotServing, "RST_STREAM"),
    ("haproxy", " check-ssl", "", a_photo, NotServing, "503"),
    ("haproxy", "server 1h", "server 1s", a_stream_with_a_pause, NotServing, "turned the call"),
    ("haproxy", "server 1h", "server 1s", a_slow_answer, NotServing, "504"),
    ("envoy", "timeout: 0s", "timeout: 1s", a_slow_answer, NotServing, "request timeout"),
    ("envoy", "timeout: 3600s", "timeout: 1s", a_stream_with_a_pause, RequestError, "RST"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "setting", "instead", "ask", "error", "text"), LOSSES)
def test_what_is_lost_without_a_setting(kind, setting, instead, ask, error, text, behind):
    def fails(address, issued):
        if "check" in setting:
            time.sleep(1.5)  # for the first check
        with pytest.raises(error, match=text):
            ask(address, issued)

    behind(kind, fails, {setting: instead}, SLOW_S if ask is a_slow_answer else 0)


def without_tls_to_the_servers(kind: str) -> dict[str, str]:
    """The changes that docs/proxies.md names."""
    text = configuration(kind)
    if kind == "nginx":
        return {"grpcs://": "grpc://"}
    if kind == "haproxy":
        first, second = re.findall("    default-server .*\n", text)
        return {first: "    default-server proto h2 inter 1s fall 1\n", second: ""}
    return {text[text.rindex("      transport_socket:") :]: ""}  # the cluster's, which ends it


@pytest.mark.parametrize("kind", FILES)
def test_tls_may_end_at_the_proxy(kind, behind):
    behind(kind, a_slow_answer, without_tls_to_the_servers(kind), tls=None)


@pytest.mark.parametrize("kind", FILES)
def test_a_stranger_in_a_servers_place_gets_no_request(kind, behind, tmp_path):
    other = issue(tmp_path / "other")

    def fails(address, issued):
        with pytest.raises(NotServing):
            a_photo(address, other)

    behind(kind, fails, proxy_issued=other)


@pytest.mark.parametrize("kind", FILES)
def test_under_overload_each_call_is_answered_or_refused_with_the_time_to_come_back(kind, behind):
    """What is sent is large, so that most refusals come before a request has been sent."""
    three = ClassifyRequest(images=[Image(encoded=PHOTO)] * 3)

    def ask(address, issued):
        def ask_once(_):
            with channel_to(address, issued) as channel:
                try:
                    return ClassifierStub(channel).Classify(three, timeout=20).results[0].scores
                except grpc.RpcError as error:
                    return error_from_call(error, address)

        a_photo(address, issued)  # the checks have found the server
        with ThreadPoolExecutor(36) as pool:
            answers = list(pool.map(ask_once, range(72)))
        refused = [answer for answer in answers if isinstance(answer, RequestError)]
        assert len(answers) > len(refused) > 0
        others = [e for e in refused if not (isinstance(e, Overloaded) and e.retry_after_s)]
        assert not others
        with ThreadPoolExecutor(12) as pool:  # our client comes back until it is answered
            list(pool.map(lambda _: a_large_request(address, issued), range(24)))

    behind(kind, ask, seconds=0.1, max_queue=20)


@pytest.mark.parametrize("kind", FILES)
def test_calls_that_are_given_up_never_reach_the_engine(kind, behind):
    def ask(address, issued):
        a_slow_answer(address, issued)
        with channel_to(address, issued) as channel:
            calls = [ClassifierStub(channel).Classify.future(request(n)) for n in range(4)]
            time.sleep(0.5)  # all have come to the server
            for call in calls:
                call.cancel()
        a_slow_answer(address, issued)

    batches = behind(kind, ask, seconds=SLOW_S, max_batch=1)
    assert len(batches) == 3  # one of the four was running


@pytest.mark.parametrize("kind", FILES)
def test_a_bundle_is_swapped_under_load_and_no_request_fails(kind, two_servers, place, issued):
    with (
        two_servers(kind) as (proxy, servers),
        load_on(proxy.address, tls=Tls(ca=issued.ca)) as failures,
    ):
        for seed in (1, 2):
            model_id = replace_bundle(place, seed=seed)
            for server in servers:
                server.popen.send_signal(signal.SIGHUP)
                assert any(line.startswith("reloaded ") for line in server.popen.stderr)
        with Client(proxy.address, tls=Tls(ca=issued.ca)) as client:
            assert client.classify([jpeg(0)])[0].model_id == model_id
    assert not failures


@pytest.mark.parametrize("kind", FILES)
def test_connections_that_end_lose_no_request(kind, two_servers, issued):
    """The server ends them at an age, the proxy when it is reloaded, nginx also after a number."""
    few = {"keepalive 32;": "keepalive 32; keepalive_requests 20;"} if kind == "nginx" else {}
    options = ("--max-connection-age-s", "1")
    with two_servers(kind, *options, edits=few) as (proxy, servers):
        with load_on(proxy.address, tls=Tls(ca=issued.ca)) as failures:
            for _ in range(2):
                proxy.reload()
                for server in servers:
                    wait_until_it_answers(server, issued)
                time.sleep(1)
        assert not failures


@pytest.mark.parametrize("kind", FILES)
def test_servers_are_restarted_one_by_one_or_killed_and_no_request_fails(
    kind, two_servers, place, issued
):
    options = (*issued.server_options, "--grace-s", "1.5")
    with ExitStack() as stack:
        proxy, servers = stack.enter_context(two_servers(kind, *options))
        failures = stack.enter_context(load_on(proxy.address, tls=Tls(ca=issued.ca)))
        for old in servers:
            wait_until_it_answers(old, issued)
            assert old.stop(signal.SIGTERM)[0] == 0
            again = ("--listen", old.address, "--http", old.http)
            new = stack.enter_context(serving(place, *options, *again))
            wait_until_it_answers(new, issued)
        new.popen.kill()
        time.sleep(1)
        assert not failures


@pytest.mark.parametrize("kind", ["haproxy", "envoy"])
def test_a_server_that_stops_is_left_alone_while_it_would_still_answer(kind, two_servers, issued):
    """By their health checks. nginx has none, and asks it until it is gone."""
    with two_servers(kind, "--grace-s", "60") as (proxy, (stopping, other)):
        with load_on(proxy.address, tls=Tls(ca=issued.ca)) as failures:
            wait_until_it_answers(stopping, issued)
            stopping.popen.send_signal(signal.SIGTERM)
            time.sleep(3)  # there is a check each second
            before = num_answered(stopping, issued)
            wait_until_it_answers(other, issued)
            assert num_answered(stopping, issued) == before
        assert not failures


def num_answered(server: Process, issued) -> float:
    text = get(server.http, "/metrics", issued.ca)[1]
    return sum(
        float(count)
        for count in re.findall(r'^irv2_requests_total{outcome="ok"} (\S+)', text, re.MULTILINE)
    )


def wait_until_it_answers(server: Process, issued) -> None:
    before, until = num_answered(server, issued), time.monotonic() + 30
    while num_answered(server, issued) < before + 3:
        assert time.monotonic() < until
        time.sleep(0.05)
