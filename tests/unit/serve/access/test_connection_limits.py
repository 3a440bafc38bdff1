"""What one client may cost, over real connections."""

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from serving_site import OPTIONS, jpeg, request, scenario_with

from irv2.errors import UsageError
from irv2.serve.access.connection_limits import MAX_CONNECTION_AGE_S, ConnectionLimits
from irv2.v1.classifier_pb2 import ClassifyRequest, Image
from irv2.v1.classifier_pb2_grpc import ClassifierStub


async def connection(site) -> grpc.aio.Channel:
    """One of its own: channels in a process share connections unless told not to."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(site.server.ready_line.split()[1], options)


@asynccontextmanager
async def wire(site, chunk: int, is_cut: asyncio.Event):
    """A channel over a network that lets `chunk` bytes through at a time.

    Once it is cut, nothing comes through any more, and nobody is told.
    """
    host, _, port = site.server.ready_line.split()[1].rpartition(":")

    async def carry(reader, writer):
        while data := await reader.read(chunk):
            if not is_cut.is_set():
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0)  # the next chunk comes later, even if it is here

    async def connect(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(host, port)
        carriers.extend(
            asyncio.create_task(carry(*way)) for way in ((reader, far_writer), (far_reader, writer))
        )
        writers.extend((writer, far_writer))

    carriers, writers = [], []
    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        for carrier in carriers:
            carrier.cancel()
        for writer in writers:
            writer.close()
        listener.close()


async def closed_after_s(site, beginning: bytes) -> float:
    """How long the server bears a connection on which nothing more comes."""
    host, _, port = site.server.ready_line.split()[1].rpartition(":")
    reader, writer = await asyncio.open_connection(host, port)
    started_at = time.monotonic()
    writer.write(beginning)
    try:
        async with asyncio.timeout(20):
            while await reader.read(1000):
                pass  # its settings
    except ConnectionResetError:
        pass
    writer.close()
    return time.monotonic() - started_at


@pytest.mark.parametrize("beginning", [b"", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_a_connection_that_stays_half_open_is_closed(bundle, beginning):
    async def scenario(site):
        assert 0.3 < await closed_after_s(site, beginning) < 10
        assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(bundle, scenario, connections=ConnectionLimits(handshake_timeout_s=0.5))


def test_a_message_that_comes_byte_by_byte_is_answered_and_delays_nobody(bundle):
    async def scenario(site):
        async with wire(site, 1, asyncio.Event()) as channel:
            slow = ClassifierStub(channel).Classify(request(0))
            num_answered = 0
            while not slow.done():
                assert (await site.stub.Classify(request(1))).results[0].scores
                num_answered += 1
            assert (await slow).results[0].scores
        assert num_answered > 1

    scenario_with(bundle, scenario)


def test_the_requests_of_a_client_that_is_lost_without_a_word_are_cancelled(bundle):
    async def scenario(site):
        cut = asyncio.Event()
        async with wire(site, 65536, cut) as channel:
            lost = ClassifierStub(channel).Classify(request(*range(20)), timeout=100)
            while not site.runner.sizes:
                await asyncio.sleep(0.01)
            cut.set()
            num_batches = 0
            while num_batches < len(site.runner.sizes):  # a ping after 0.5 s, 0.5 s for its answer
                num_batches = len(site.runner.sizes)
                await asyncio.sleep(1)  # two batches
            assert num_batches < 12, "of 20 the rest was not dropped"
            lost.cancel()

    limits = ConnectionLimits(keepalive_time_s=0.5, keepalive_timeout_s=0.5)
    scenario_with(bundle, scenario, seconds=0.5, max_batch=1, connections=limits)


def test_a_connection_too_many_is_closed_and_the_others_are_answered(bundle):
    async def scenario(site):
        assert (await site.stub.Classify(request(0))).results[0].scores
        async with await connection(site) as second, await connection(site) as third:
            assert (await ClassifierStub(second).Classify(request(0))).results[0].scores
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ClassifierStub(third).Classify(request(0), timeout=2)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(bundle, scenario, connections=ConnectionLimits(max_connections=2))


def test_of_more_calls_than_python_looks_at_some_are_shed_and_the_others_answered(bundle):
    def outcome(stub: ClassifierStub, number: int) -> str:
        try:
            return "OK" if stub.Classify(request(number), timeout=20).results[0].scores else "?"
        except grpc.RpcError as error:
            return error.code().name

    async def scenario(site):
        address = site.server.ready_line.split()[1]
        with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(60) as clients:
            stub = ClassifierStub(channel)
            asked = [clients.submit(outcome, stub, number % 10) for number in range(60)]
            time.sleep(1)  # the event loop stands still, so Python looks at none of them
            outcomes = Counter(await asyncio.gather(*map(asyncio.wrap_future, asked)))
        assert outcomes.keys() == {"OK", "CANCELLED"}
        assert 5 <= outcomes["OK"] <= 15

    scenario_with(bundle, scenario, connections=ConnectionLimits(max_pending=5))


def test_calls_over_the_limit_of_a_connection_wait_in_the_client(bundle):
    async def scenario(site):
        async def ask(number):
            return (await site.stub.Classify(request(number), timeout=10)).results[0].scores

        assert all(await asyncio.gather(*map(ask, range(8))))
        # More at a time would have been batched together: the engine takes four.
        assert max(site.runner.sizes) <= 2

    scenario_with(bundle, scenario, seconds=0.05, connections=ConnectionLimits(max_streams=2))


def test_a_connection_of_a_certain_age_is_closed_and_the_next_call_opens_another(bundle):
    async def scenario(site):
        assert (await site.stub.Classify(request(0))).results[0].scores
        ready = grpc.ChannelConnectivity.READY
        assert site.channel.get_state() is ready
        await asyncio.wait_for(site.channel.wait_for_state_change(ready), 10)
        assert (await site.stub.Classify(request(0))).results[0].scores

    limits = ConnectionLimits(max_connection_age_s=0.3)
    scenario_with(bundle, scenario, connections=limits)


@pytest.mark.slow
def test_a_client_that_pings_without_end_loses_its_connection(bundle):
    async def scenario(site):
        pinging = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.keepalive_time_ms", 10),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        address = site.server.ready_line.split()[1]
        async with grpc.aio.insecure_channel(address, pinging) as channel:
            stream = ClassifierStub(channel).ClassifyStream()
            assert await asyncio.wait_for(stream.code(), 10) is grpc.StatusCode.UNAVAILABLE
            assert "ping" in (await stream.details()).lower()
        assert (await site.stub.Classify(request(0))).results[0].scores

    scenario_with(bundle, scenario)


def test_a_queue_that_could_never_hold_a_whole_request_is_wrong_usage():
    replace(OPTIONS, max_queue=20)
    with pytest.raises(UsageError, match="--max-queue: 19; expected at least --max-images, 20"):
        replace(OPTIONS, max_queue=19)


def test_the_largest_limits_of_the_command_line_are_taken(bundle):
    async def scenario(site):
        assert (await site.stub.Classify(request(0))).results[0].scores

    most = 2**31 - 1
    limits = ConnectionLimits(
        max_connections=most - 1, max_streams=most, max_connection_age_s=MAX_CONNECTION_AGE_S
    )
    scenario_with(
        bundle,
        scenario,
        connections=limits,
        max_message_bytes=most,
        max_image_bytes=most,
        max_image_pixels=most,
        default_deadline_ms=most,
    )


def test_a_message_over_the_limit_is_refused_and_never_to_be_retried(bundle):
    async def scenario(site):
        large = ClassifyRequest(images=[Image(encoded=jpeg(0) + bytes(1_000_000))])
        code, status = await site.refusal(large)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert status is None, "no RetryInfo"

    scenario_with(bundle, scenario)
