"""The client's limits, retries and patience, against a real server in this process."""

import asyncio
import time

import pytest
from serving_site import Site, jpeg, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client
from irv2.errors import Expired, ImageReason, InvalidRequest, Overloaded
from irv2.v1.classifier_pb2 import ClassifyRequest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("client") / "tiny.bundle"))


def classify(site: Site, images: list[bytes], timeout_s: float | None = None):
    """In a thread, since the server needs the event loop."""

    def ask():
        with Client(site.server.ready_line.split()[1]) as client:
            return client.classify(images, timeout_s=timeout_s)

    return asyncio.to_thread(ask)


@pytest.mark.parametrize("limits", [{"max_images": 3}, {"max_message_bytes": 75_000}])
def test_requests_stay_under_the_servers_limits(bundle, limits):
    async def scenario(site):
        images = [jpeg(number) for number in range(11)]
        results = await classify(site, images)
        expected = bundle.classify(images)
        assert [r.scores[0].label for r in results] == [r.scores[0].label for r in expected]

    assert len(jpeg(0)) * 11 > 75_000 - 64 * 1024, "the bytes alone need several requests"
    scenario_with(bundle, scenario, **limits)


def test_an_image_too_large_for_any_message_fails_alone(bundle):
    async def scenario(site):
        results = await classify(site, [jpeg(0), bytes(100_000), jpeg(1)])
        assert [bool(result.scores) for result in results] == [True, False, True]
        assert results[1].error.reason is ImageReason.TOO_LARGE

    scenario_with(bundle, scenario, max_message_bytes=150_000)


def test_many_images_keep_the_engine_full(bundle):
    async def scenario(site):
        images = [jpeg(number % 8) for number in range(400)]
        results = await classify(site, images)
        assert [bool(result.scores) for result in results] == [True] * 400
        # Decoding a burst's first images, and its end, may leave a few batches half empty.
        assert len(site.runner.sizes) <= 1.15 * 400 / 4

    scenario_with(bundle, scenario, seconds=0.01)


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
        def ask():
            with Client(site.server.ready_line.split()[1]) as client:
                client._call(client._stub.Classify, ClassifyRequest(), None)

        with pytest.raises(InvalidRequest, match="0 of them; expected 1 to 20"):
            await asyncio.to_thread(ask)

    scenario_with(bundle, scenario)
