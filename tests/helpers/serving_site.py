"""The whole server in the test's process, over a real socket; only its engine is slowed down."""

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from unittest.mock import patch

import grpc
import numpy as np
import pytest
import simplejpeg
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status

from irv2.bundle import Bundle
from irv2.client import Client
from irv2.errors import EngineError
from irv2.runners.base import Runner
from irv2.runners.choose import open_best
from irv2.serve.access.address import Address
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.engine import OpenedModel
from irv2.serve.server import Server
from irv2.v1 import classifier_pb2_grpc
from irv2.v1.classifier_pb2 import ClassifyRequest, Image

OPTIONS = ServeOptions(
    listen=Address("127.0.0.1", 0), http=None, insecure=False, precision=None, backend=None,
    num_threads=1, num_decode_threads=2, max_batch=4, max_queue=256, max_queue_delay_ms=0.0,
    default_deadline_ms=10_000, grace_s=0.0, stop_timeout_s=60.0, max_message_bytes=1_000_000,
    max_images=20, max_image_bytes=100_000, max_image_pixels=1_000_000,
)  # fmt: skip


class PacedRunner(Runner):
    """The bundle's own engine, made slow or broken."""

    def __init__(self, inner: Runner, seconds: float) -> None:
        self.inner, self.seconds, self.sizes, self.error = inner, seconds, [], None
        self.fails_on = lambda images: True  # if there is an `error`
        self.fails_every: int | None = None  # every n-th batch
        self.is_closed, self.close_s = False, 0.0
        self.backend, self.image_size = inner.backend, inner.image_size
        self.num_classes, self.max_batch = inner.num_classes, inner.max_batch
        self.num_streams = inner.num_streams

    def run(self, images):
        self.sizes.append(len(images))
        time.sleep(self.seconds)
        if self.error and self.fails_on(images):
            raise self.error
        if self.fails_every and len(self.sizes) % self.fails_every == 0:
            raise EngineError("engine", "fails on purpose")
        return self.inner.run(images)

    def close(self):
        time.sleep(self.close_s)
        self.is_closed = True


class Site:
    """A running server, its engine and a client's stubs."""

    def __init__(self, bundle: Bundle, seconds: float, **options) -> None:
        self.bundle = bundle
        num_streams = options.get("num_streams", 1)
        choice = open_best(bundle.path, bundle.artifacts, num_threads=1, num_streams=num_streams)
        self.runner = PacedRunner(choice.runner, seconds)
        paced = OpenedModel(bundle, choice._replace(runner=self.runner))
        self.server = Server(paced, replace(OPTIONS, **options))

    def connect(self) -> None:
        address = self.server.ready_line.split()[1]
        self.channel = grpc.aio.insecure_channel(address)
        self.stub = classifier_pb2_grpc.ClassifierStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def ask(self, timeout_s: float = 10, address: str | None = None, **how):
        """The scores of an image, by a client of our own: in a thread, as it waits."""

        def classify():
            with Client(address or self.server.ready_line.split()[1], **how) as client:
                return client.classify([jpeg(0)], timeout_s=timeout_s)[0].scores

        return asyncio.to_thread(classify)

    async def refusal(self, request, timeout_s: float | None = None, method=None):
        """Status code and google.rpc.Status of a request that must be refused."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (method or self.stub.Classify)(request, timeout=timeout_s)
        status = await rpc_status.aio.from_call(_Refused(refused.value))
        return refused.value.code(), status


class _Refused:
    """An AioRpcError with the awaitable methods that grpc_status.aio asks of a call."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def __getattr__(self, name):
        async def value():
            return getattr(self._error, name)()

        return value


def scenario_with(bundle: Bundle, scenario, seconds: float = 0.0, **options) -> None:
    @asynccontextmanager
    async def site():
        site = Site(bundle, seconds, **options)
        try:
            await site.server.start()
            site.runner.sizes.clear()
            site.connect()
            async with site.channel:
                yield site
        finally:
            await site.server.stop()

    async def run():
        async with site() as running:
            await scenario(running)

    # Walking over all that the tests' process has come to hold took most of a short scenario.
    with patch("irv2.serve.server.tidy_up"):
        asyncio.run(run())


async def until(condition) -> None:
    """Wait for what is about to happen in this event loop."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def loop_watched():
    """A function that gives the longest time for which the event loop was blocked, in seconds."""
    gaps = [0.0]

    async def watch():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    watching = asyncio.create_task(watch())
    yield lambda: max(gaps)
    watching.cancel()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def jpeg(number: int) -> bytes:
    """Coarse noise, a different picture for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(blocks.repeat(20, 0).repeat(20, 1)))


def request(*numbers: int, **fields) -> ClassifyRequest:
    return ClassifyRequest(images=[Image(encoded=jpeg(number)) for number in numbers], **fields)


def detail(status, kind):
    found = [each for each in status.details if each.Is(kind.DESCRIPTOR)]
    assert len(found) == 1
    message = kind()
    found[0].Unpack(message)
    return message
