"""The client's limits, retries and patience, against a real server in this process."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from grpc_status import rpc_status
from scripted_server import Scripted, served
from serving_site import Site, has_ipv6, jpeg, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client
from irv2.errors import (
    Expired,
    ImageReason,
    InvalidRequest,
    MessageTooLarge,
    Overloaded,
    RequestError,
)
from irv2.protocol import error_from_call, status_from_error
from irv2.serve.access.address import Address
from irv2.v1.classifier_pb2 import ClassifyRequest, GetModelResponse, Limits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("client") / "tiny.bundle"
    return Bundle.open(write_tiny_bundle(folder, max_batch=64))


def classify(site: Site, images: list[bytes], timeout_s: float | None = None):
    """In a thread, since the server needs the event loop."""

    def ask():
        with Client(site.server.ready_line.split()[1]) as client:
            return client.classify(images, timeout_s=timeout_s)

    return asyncio.to_thread(ask)


@pytest.mark.parametrize("limits", [{"max_images": 3}, {"max_message_bytes": 10_000}])
def test_requests_stay_under_the_servers_limits(bundle, limits):
    async def scenario(site):
        images = [jpeg(number) for number in range(11)]
        results = await classify(site, images)
        expected = bundle.classify(images)
        assert [r.scores[0].label for r in results] == [r.scores[0].label for r in expected]

    assert len(jpeg(0)) * 11 > 10_000, "the bytes alone need several requests"
    scenario_with(bundle, scenario, **limits)


def test_an_image_fits_a_message_that_is_little_larger(bundle):
    image = jpeg(0)

    async def scenario(site):
        fits, too_large = await classify(site, [image, image + b"\0"])
        assert fits.scores
        sizes = f"{len(image) + 1} bytes; expected at most {len(image)} in a message"
        assert str(too_large.error) == f"image: {sizes}"

    scenario_with(bundle, scenario, max_message_bytes=len(image) + 48)


def test_an_image_too_large_for_any_message_fails_alone(bundle):
    async def scenario(site):
        results = await classify(site, [jpeg(0), bytes(100_000), jpeg(1)])
        assert [bool(result.scores) for result in results] == [True, False, True]
        assert results[1].error.reason is ImageReason.TOO_LARGE

    scenario_with(bundle, scenario, max_message_bytes=50_000)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("max_batch", "num_images", "seconds"),
    [(4, 400, 0.01), pytest.param(64, 1280, 0.2, marks=pytest.mark.slow)],
)
def test_many_images_keep_the_engine_full(bundle, max_batch, num_images, seconds):
    async def scenario(site):
        images = [jpeg(number % 8) for number in range(num_images)]
        results = await classify(site, images)
        assert [bool(result.scores) for result in results] == [True] * num_images
        # Decoding a burst's first images, and its end, may leave a few batches half empty.
        assert len(site.runner.sizes) <= 1.15 * num_images / max_batch

    scenario_with(bundle, scenario, seconds=seconds, max_batch=max_batch)


def test_the_first_results_are_there_before_the_last_images_were_read(bundle):
    async def scenario(site):
        read = []

        def images():
            for number in range(400):
                read.append(number)
                yield jpeg(0)

        def ask():
            with Client(site.server.ready_line.split()[1]) as client:
                assert next(client.iter_classify(images())).scores

        await asyncio.to_thread(ask)
        assert len(read) < 200

    scenario_with(bundle, scenario)


def test_no_images_are_no_results(bundle):
    async def scenario(site):
        assert await classify(site, []) == []

    scenario_with(bundle, scenario)


def test_an_overloaded_server_is_asked_again_when_it_says_so(bundle):
    async def scenario(site):
        asking = [classify(site, [jpeg(number)], timeout_s=20) for number in range(4)]
        for results in await asyncio.gather(*asking):
            assert results[0].scores

    scenario_with(bundle, scenario, seconds=0.2, max_batch=1, max_queue=1, max_images=1)


def test_a_server_that_is_starting_is_waited_for(bundle):
    async def scenario():
        site = Site(bundle, seconds=0.1)
        starting = asyncio.create_task(site.server.start())
        await asyncio.sleep(0.1)
        results = await classify(site, [jpeg(0)])
        assert results[0].scores
        await starting
        await site.server.stop()

    asyncio.run(scenario())


@pytest.mark.alone
def test_patience_ends_with_the_time_allowed(bundle):
    async def scenario(site):
        site.runner.seconds = 0.6
        started_at = time.monotonic()
        with pytest.raises((Expired, Overloaded)):
            await classify(site, [jpeg(0)], timeout_s=0.3)
        assert time.monotonic() - started_at < 0.55

    scenario_with(bundle, scenario, seconds=0.01)


def test_what_a_server_refuses_is_our_error_with_its_text(bundle):
    async def scenario(site):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await site.stub.Classify(ClassifyRequest())
        error = error_from_call(refused.value, "server")
        assert isinstance(error, InvalidRequest)
        assert "0 of them; expected 1 to 20" in str(error)

    scenario_with(bundle, scenario)


def test_results_and_model_name_the_model_that_answers_now(bundle, tmp_path):
    other = write_tiny_bundle(tmp_path / "other.bundle", seed=1)

    async def scenario(site):
        def ask():
            with Client(site.server.ready_line.split()[1]) as client:
                (before,) = client.classify([jpeg(0)])
                assert before.model_id == client.model().id == bundle.id
                reload = asyncio.run_coroutine_threadsafe(site.server.reload(other), loop)
                reload.result(timeout=30)
                text, after = client.classify([b"no image", jpeg(0)])
                assert text.model_id == after.model_id == client.model().id == Bundle.open(other).id

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(ask)

    scenario_with(bundle, scenario)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize("hosts", [("::1", "::1"), ("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
def test_a_list_of_addresses_may_hold_ipv6(bundle, hosts):
    async def scenario():
        sites = [Site(bundle, seconds=0.0, listen=Address(host, 0)) for host in hosts]
        for site in sites:
            await site.server.start()
            site.runner.sizes.clear()

        def ask():
            with Client([site.server.ready_line.split()[1] for site in sites]) as client:
                until = time.monotonic() + 20
                while not all(site.runner.sizes for site in sites):  # both get their share
                    assert client.classify([jpeg(0)])[0].scores
                    assert time.monotonic() < until

        await asyncio.to_thread(ask)
        for site in sites:
            await site.server.stop()

    asyncio.run(scenario())


def test_a_retry_comes_no_earlier_than_the_server_said():
    servicer = Scripted(Overloaded("server", "is full", 0.4))
    with served(servicer) as address, Client(address) as client:
        assert client.classify([jpeg(0)])[0].scores
    first, second = servicer.called_at
    assert 0.4 <= second - first < 0.8 + 1.0  # a second for a busy machine


def test_clients_that_were_refused_together_come_back_apart():
    servicer = Scripted(*[Overloaded("server", "is full", 0.3)] * 16)
    with served(servicer) as address, Client(address) as client, ThreadPoolExecutor(16) as pool:
        for results in pool.map(client.classify, [[jpeg(0)]] * 16):
            assert results[0].scores
    again = servicer.called_at[16:]
    assert max(again) - min(again) > 0.1  # of 0.3; less by chance once in a million times


def test_a_call_that_grpc_sheds_is_made_again():
    servicer = Scripted(grpc.StatusCode.CANCELLED, grpc.StatusCode.CANCELLED)
    with served(servicer) as address, Client(address) as client:
        assert client.classify([jpeg(0)])[0].scores
    assert len(servicer.called_at) == 3


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (MessageTooLarge("message", "is too large"), MessageTooLarge),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, MessageTooLarge),
        (InvalidRequest("images", "none"), InvalidRequest),
        (grpc.StatusCode.INTERNAL, RequestError),
    ],
)
def test_what_no_retry_can_help_is_asked_once(refusal, expected):
    servicer = Scripted(refusal)
    with served(servicer) as address, Client(address) as client, pytest.raises(expected):
        client.classify([jpeg(0)])
    assert len(servicer.called_at) == 1


@pytest.mark.parametrize(
    "servicer",
    [
        Scripted(answers=False),
        Scripted(Overloaded("server", "is full", 30.0)),
    ],
    ids=["in a call", "between calls"],
)
def test_closing_a_client_ends_its_requests_at_once(servicer):
    refusals = []

    def ask(client):
        with pytest.raises(RequestError, match="the client was closed") as refused:
            client.classify([jpeg(0)])
        refusals.append(refused)

    with served(servicer) as address:
        client = Client(address)
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        assert servicer.asked.wait(20)
        time.sleep(0.2)  # the refusal is on its way
        client.close()
        asking.join(10)
        assert not asking.is_alive()
    assert refusals


def test_a_client_that_is_closed_at_the_moment_of_a_call_says_so():
    """Whether the call had begun or not; in between gRPC raises a ValueError."""

    def close_at_once(client: Client, together: threading.Barrier) -> None:
        together.wait()
        client.close()

    said = set()
    with served(Scripted()) as address:
        for _ in range(50):
            together = threading.Barrier(2)
            with Client(address) as client, ThreadPoolExecutor(1) as other:
                closing = other.submit(close_at_once, client, together)
                together.wait()
                with suppress(RequestError):
                    client.model()
                closing.result()
                with pytest.raises(RequestError) as refused:
                    client.model()
                said.add(str(refused.value))
    assert all("closed" in line for line in said), said


class Shrinking(Scripted):
    """Takes as many images in a request as it is told."""

    max_images = 8

    def GetModel(self, request, context):  # noqa: N802 (gRPC's name)
        limits = Limits(max_message_bytes=2**20, max_images=self.max_images)
        return GetModelResponse(limits=limits)

    def Classify(self, request, context):  # noqa: N802
        if len(request.images) > self.max_images:
            error = InvalidRequest("images", str(len(request.images)), f"1 to {self.max_images}")
            context.abort_with_status(rpc_status.to_status(status_from_error(error)))
        return super().Classify(request, context)


@pytest.mark.parametrize("num_images", [8, 30])
def test_a_server_that_came_back_with_smaller_limits_gets_smaller_requests(num_images):
    servicer = Shrinking()
    with served(servicer) as address, Client(address) as client:
        client.classify([jpeg(0)] * num_images)
        servicer.max_images = 3
        results = client.classify([jpeg(0)] * num_images)
        assert [result.error for result in results] == [None] * num_images
