"""The service irv2.v1.Classifier over grpc.aio; the pipeline does the work."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.rpc import status_pb2

from irv2.errors import Expired, InvalidRequest, NotServing
from irv2.protocol import status_from_error
from irv2.serve.pipeline.model import Model
from irv2.serve.rpc.calls import Calls, end_with
from irv2.serve.rpc.request_log import Call
from irv2.v1 import classifier_pb2, classifier_pb2_grpc

_Context = grpc.aio.ServicerContext[classifier_pb2.ClassifyRequest, classifier_pb2.ClassifyResponse]
_StreamContext = grpc.aio.ServicerContext[
    classifier_pb2.ClassifyStreamRequest, classifier_pb2.ClassifyStreamResponse
]


class Classifier(classifier_pb2_grpc.ClassifierServicer):
    """The gRPC service, one per server."""

    def __init__(
        self,
        current_model: Callable[[], Model],
        calls: Calls,
        stopping: asyncio.Event,
        max_stream_images: int,
    ) -> None:
        """Streams end at `stopping`.

        Up to `max_stream_images` images of one stream are worked on at a time, and always one
        request; more wait in the client (flow control), so that a stream alone is never refused.
        """
        self._current_model, self._calls = current_model, calls
        self._stopping, self._max_stream_images = stopping, max_stream_images

    async def Classify(  # noqa: N802 (gRPC's name)
        self, request: classifier_pb2.ClassifyRequest, context: _Context
    ) -> classifier_pb2.ClassifyResponse | None:
        """Answer one request, or end the call with the status of its refusal."""
        call = self._calls.begin(context, "Classify", request.id, len(request.images))
        work = self._current_model().pipeline.classify(request, call.deadline)
        return await self._calls.unary(work, call, context)

    async def ClassifyStream(  # noqa: N802
        self,
        requests: object,
        context: _StreamContext,
    ) -> None:
        """Answer the requests of a stream in any order; a refusal does not end the stream."""
        stream = _Stream(self._current_model, self._calls, context, self._max_stream_images)
        await stream.answer_all(self._stopping)

    async def GetModel(  # noqa: N802
        self, request: classifier_pb2.GetModelRequest, context: object
    ) -> classifier_pb2.GetModelResponse:
        """Describe the model and the limits."""
        pipeline = self._current_model().pipeline
        return classifier_pb2.GetModelResponse(model=pipeline.model, limits=pipeline.limits)


class _Stream:
    """One call of ClassifyStream: its open requests and the one writer at a time gRPC allows."""

    def __init__(
        self,
        current_model: Callable[[], Model],
        calls: Calls,
        context: _StreamContext,
        max_images: int,
    ) -> None:
        self._current_model, self._calls, self._context = current_model, calls, context
        self._max_images, self._num_images = max_images, 0
        self._open: set[str] = set()
        self._answered = asyncio.Event()  # set since the request that waits for room last looked
        self._writing = asyncio.Lock()

    async def answer_all(self, stopping: asyncio.Event) -> None:
        """Answer until the client ends the stream or the server stops.

        A server that stops answers what it has read and sends the client elsewhere with the rest.
        """
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read_all(tasks))
            stop = asyncio.create_task(stopping.wait())
            try:
                await asyncio.wait({reading, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
            was_stopped = not reading.done()
            reading.cancel()
        if was_stopped:
            refusal = NotServing("server", "is stopping", way_out="ask another one")
            end_with(status_from_error(refusal), self._context)

    async def _read_all(self, tasks: asyncio.TaskGroup) -> None:
        while await self._read_one(tasks):
            pass

    async def _read_one(self, tasks: asyncio.TaskGroup) -> bool:
        """Read a request, and wait until there is room for it; False at the end of the stream."""
        # Not from gRPC's iterator, which holds its latest message as long as it lives.
        message: Any = await self._context.read()
        if message is grpc.aio.EOF:
            return False
        if isinstance(message, InvalidRequest):  # from EarlyRefusal
            call = self._calls.begin(self._context, "Classify")
            await self._write("", self._calls.refuse(message, call))
            return True
        request = message.request
        call = self._calls.begin(
            self._context,
            "Classify",
            request.id,
            len(request.images),
            timeout_ms=message.timeout_ms,
        )
        if refusal := self._check_id(request.id):
            await self._write(request.id, self._calls.refuse(refusal, call))
            return True
        self._open.add(request.id)
        has_room = asyncio.Event()
        tasks.create_task(self._answer(request, call, has_room))
        await has_room.wait()
        return True

    def _check_id(self, request_id: str) -> InvalidRequest | None:
        if not request_id:
            return InvalidRequest("request.id", "empty", "an id that is unique in its stream")
        if request_id in self._open:
            return InvalidRequest("request.id", f"{request_id!r} is still open", "another id")
        return None

    async def _answer(
        self, request: classifier_pb2.ClassifyRequest, call: Call, has_room: asyncio.Event
    ) -> None:
        num_images = max(1, len(request.images))  # an empty one is work too
        try:
            work = self._classify(request, call.deadline, num_images, has_room)
            outcome = await self._calls.outcome(work, call)
            # Before the answer is written: once it is there, the client may use the id again.
            self._open.remove(request.id)
            await self._write(request.id, outcome)
        finally:
            if has_room.is_set():
                self._num_images -= num_images
                self._answered.set()

    async def _classify(
        self,
        request: classifier_pb2.ClassifyRequest,
        deadline: float,
        num_images: int,
        has_room: asyncio.Event,
    ) -> classifier_pb2.ClassifyResponse:
        """Classify once there is room; while a request waits for it, no other is read."""
        try:
            async with asyncio.timeout_at(deadline):
                while self._num_images and self._num_images + num_images > self._max_images:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError as error:
            got = "passed before the stream's earlier requests were answered"
            raise Expired("deadline", got, "arrival") from error
        finally:
            self._num_images += num_images
            has_room.set()
        return await self._current_model().pipeline.classify(request, deadline)

    async def _write(
        self, request_id: str, outcome: classifier_pb2.ClassifyResponse | status_pb2.Status
    ) -> None:
        response = classifier_pb2.ClassifyStreamResponse(id=request_id)
        if isinstance(outcome, status_pb2.Status):
            response.error.CopyFrom(outcome)
        else:
            response.response.CopyFrom(outcome)
        async with self._writing:
            try:
                await self._context.write(response)
            except grpc.aio.BaseError as error:  # the client has gone
                raise asyncio.CancelledError from error
