"""Clients of the benchmarks: one asyncio process, messages made before, answers checked after.

Closed loop: each client asks again once it is answered. Open loop: requests are sent at given
times whatever the server does, and latency counts from the time a request was meant to be sent.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle

import grpc
import numpy as np

from irv2.errors import EngineError
from irv2.v1 import classifier_pb2

Ask = Callable[[bytes, float | None], Awaitable[bytes]]  # a message and its timeout in seconds
NUM_CONNECTIONS = 8  # of an open loop
# Pause after a call that gRPC itself turned away: the backlog that made it do so is still there.
SHED_PAUSE_S = 0.05
CLASSIFY = "/irv2.v1.Classifier/Classify"
BOUNDARY = "irv2-bench"


class GrpcTarget:
    """`Classify` over gRPC, with one connection per client."""

    def __init__(self, address: str, pictures: Sequence[bytes]) -> None:
        self._address = address
        self.messages = [
            classifier_pb2.ClassifyRequest(
                images=[classifier_pb2.Image(encoded=picture)]
            ).SerializeToString()
            for picture in pictures
        ]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        """Open a connection that no other client shares."""
        options = [("grpc.use_local_subchannel_pool", 1)]  # or all would share one
        async with grpc.aio.insecure_channel(self._address, options) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)
            await channel.channel_ready()

            async def ask(message: bytes, timeout_s: float | None) -> bytes:
                return await call(message, timeout=timeout_s)

            yield ask

    @staticmethod
    def top1(reply: bytes) -> int:
        """Return the best class in an answer to one image, -1 if that image failed."""
        (result,) = classifier_pb2.ClassifyResponse.FromString(reply).results
        return result.scores[0].index if result.scores else -1


class HttpTarget:
    """Forms uploaded over HTTP, with one kept-alive connection per client."""

    def __init__(self, address: str, pictures: Sequence[bytes]) -> None:
        self._host, _, self._port = address.rpartition(":")
        self.messages = [_form(address, picture) for picture in pictures]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Ask]:
        """Open a connection that is kept alive."""
        reader, writer = await asyncio.open_connection(self._host, int(self._port))

        async def ask(message: bytes, _timeout_s: float | None) -> bytes:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200"):
                raise EngineError("peer", head.split(b"\r\n")[0].decode(), "200 OK")
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            return await reader.readexactly(length)

        yield ask
        writer.close()

    @staticmethod
    def top1(reply: bytes) -> int:
        """Return the best class in a JSON answer."""
        return int(json.loads(reply)["index"])


Target = GrpcTarget | HttpTarget


def _form(address: str, picture: bytes) -> bytes:
    disposition = 'form-data; name="image"; filename="a.jpg"'
    start = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    body = start + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Call:
    """One request: its picture, when it was due, sent and done, and what came back."""

    picture: int
    due_at: float
    sent_at: float
    done_at: float
    outcome: str  # "ok" or the name of the status code
    reply: bytes = b""


@dataclass(slots=True)
class Window:
    """The calls of a closed loop between two of its answers."""

    seconds: float
    calls: list[Call]
    server_cpu_s: float
    client_cpu_s: float

    @property
    def rate(self) -> float:
        """Return the answers per second."""
        return len(self.calls) / self.seconds

    def latency_ms(self, percentile: float) -> float:
        """Return a percentile of the latencies."""
        return float(np.percentile([c.done_at - c.due_at for c in self.calls], percentile)) * 1e3


@dataclass(slots=True)
class ClosedLoop:
    """Clients, each on a connection of its own, that ask again once they are answered."""

    target: Target
    num_clients: int
    cpu_s: Callable[[], float]  # of the server
    _calls: list[Call] = field(default_factory=list)
    _answer: "asyncio.Future[None] | None" = None
    _stopping: bool = False

    async def window(self, seconds: float, settle_s: float) -> Window:
        """Let all clients ask for `settle_s`, then measure from one answer to another.

        Servers answer in groups. From the first answer after `settle_s` to the first after
        `seconds` more there is a whole number of groups, whatever their size.
        """
        self._stopping, self._calls = False, []
        async with asyncio.TaskGroup() as clients:
            for number in range(self.num_clients):
                clients.create_task(self._client(number))
            opened_at, *used_before = await self._next_answer(settle_s)
            closed_at, *used_after = await self._next_answer(seconds)
            self._stopping = True
        server_s, client_s = np.subtract(used_after, used_before)
        calls = [call for call in self._calls if opened_at < call.done_at <= closed_at]
        return Window(closed_at - opened_at, calls, float(server_s), float(client_s))

    async def _next_answer(self, after_s: float) -> tuple[float, float, float]:
        await asyncio.sleep(after_s)
        self._answer = asyncio.get_running_loop().create_future()
        await self._answer
        return self._calls[-1].done_at, self.cpu_s(), time.process_time()

    async def _client(self, number: int) -> None:
        messages = self.target.messages
        picture = number * 4  # clients start at different pictures
        async with self.target.connect() as ask:
            while not self._stopping:
                picture = (picture + 1) % len(messages)
                sent_at = time.perf_counter()
                try:
                    reply = await ask(messages[picture], None)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.CANCELLED:
                        raise
                    await asyncio.sleep(SHED_PAUSE_S)
                    continue
                done_at = time.perf_counter()
                self._calls.append(Call(picture, sent_at, sent_at, done_at, "ok", reply))
                if self._answer and not self._answer.done():
                    self._answer.set_result(None)


async def open_loop(target: GrpcTarget, due_s: Sequence[float], deadline_s: float) -> list[Call]:
    """Send a request at each of `due_s` seconds from now, each with `deadline_s` from then."""
    calls: list[Call] = []

    async def send(ask: Ask, picture: int, due_at: float) -> None:
        sent_at, outcome, reply = time.perf_counter(), "ok", b""
        try:
            reply = await ask(target.messages[picture], due_at + deadline_s - sent_at)
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
        calls.append(Call(picture, due_at, sent_at, time.perf_counter(), outcome, reply))

    async with AsyncExitStack() as stack:
        asks = [await stack.enter_async_context(target.connect()) for _ in range(NUM_CONNECTIONS)]
        started_at = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number, (due, ask) in enumerate(zip(due_s, cycle(asks))):
                await asyncio.sleep(max(0.0, started_at + due - time.perf_counter()))
                tasks.create_task(send(ask, number % len(target.messages), started_at + due))
    return calls


def num_wrong(calls: Sequence[Call], top1: Callable[[bytes], int], expected: Sequence[int]) -> int:
    """Count the answers whose best class is not the one expected for their picture."""
    return sum(
        call.outcome == "ok" and top1(call.reply) != expected[call.picture] for call in calls
    )
