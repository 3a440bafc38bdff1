"""irv2.v1.Classifier over grpc.aio; the work itself is the pipeline's."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from google.rpc import status_pb2

from irv2.errors import InvalidRequest
from irv2.v1 import classifier_pb2, classifier_pb2_grpc
from serve.answering import Answering
from serve.pipeline import Pipeline
from serve.status import status_from_error

# Requests of one stream that are worked on at a time; more wait in the client (flow control).
MAX_OPEN_PER_STREAM = 32

_Context = grpc.aio.ServicerContext[classifier_pb2.ClassifyRequest, classifier_pb2.ClassifyResponse]
_StreamContext = grpc.aio.ServicerContext[
    classifier_pb2.ClassifyStreamRequest, classifier_pb2.ClassifyStreamResponse
]


class Classifier(classifier_pb2_grpc.ClassifierServicer):
    """The service; one per server."""

    def __init__(self, pipeline: Pipeline, answering: Answering) -> None:
        self._pipeline, self._answering = pipeline, answering

    async def Classify(  # noqa: N802 (gRPC's name)
        self, request: classifier_pb2.ClassifyRequest, context: _Context
    ) -> classifier_pb2.ClassifyResponse:
        """Answer one request; a refused one ends with its status."""
        deadline = self._answering.deadline(context)
        return await self._answering.unary(self._pipeline.classify(request, deadline), context)

    async def ClassifyStream(  # noqa: N802
        self,
        requests: AsyncIterator[classifier_pb2.ClassifyStreamRequest],
        context: _StreamContext,
    ) -> None:
        """Answer the requests of a stream in any order; a refused one does not end it."""
        await _Stream(self._pipeline, self._answering, context).answer_all(requests)

    async def GetModel(  # noqa: N802
        self, request: classifier_pb2.GetModelRequest, context: object
    ) -> classifier_pb2.GetModelResponse:
        """Describe the model and the limits."""
        model, limits = self._pipeline.model, self._pipeline.limits
        return classifier_pb2.GetModelResponse(model=model, limits=limits)


class _Stream:
    """One call of ClassifyStream: its open requests and the one writer at a time gRPC allows."""

    def __init__(
        self, pipeline: Pipeline, answering: Answering, context: _StreamContext
    ) -> None:  # fmt: skip
        self._pipeline, self._answering, self._context = pipeline, answering, context
        self._open: set[str] = set()
        self._places = asyncio.Semaphore(MAX_OPEN_PER_STREAM)
        self._writing = asyncio.Lock()

    async def answer_all(
        self, messages: AsyncIterator[classifier_pb2.ClassifyStreamRequest]
    ) -> None:  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            async for message in messages:
                request = message.request
                deadline = self._answering.deadline(self._context, message.timeout_ms)
                refusal = self._check_id(request.id)
                if refusal:
                    await self._write(request.id, status_from_error(refusal))
                    continue
                self._open.add(request.id)
                await self._places.acquire()
                tasks.create_task(self._answer(request, deadline))

    def _check_id(self, request_id: str) -> InvalidRequest | None:
        if not request_id:
            return InvalidRequest("request.id", "empty", "an id that is unique in its stream")
        if request_id in self._open:
            return InvalidRequest("request.id", f"{request_id!r} is still open", "another id")
        return None

    async def _answer(self, request: classifier_pb2.ClassifyRequest, deadline: float) -> None:
        try:
            outcome = await self._answering.outcome(self._pipeline.classify(request, deadline))
            # Closed before it is written: with the answer the client may use the id again.
            self._open.remove(request.id)
            await self._write(request.id, outcome)
        finally:
            self._places.release()

    async def _write(
        self, request_id: str, outcome: classifier_pb2.ClassifyResponse | status_pb2.Status
    ) -> None:  # fmt: skip
        response = classifier_pb2.ClassifyStreamResponse(id=request_id)
        if isinstance(outcome, status_pb2.Status):
            response.error.CopyFrom(outcome)
        else:
            response.response.CopyFrom(outcome)
        async with self._writing:
            await self._context.write(response)
