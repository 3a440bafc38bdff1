"""irv2.v1.Classifier over grpc.aio: deadlines in, status codes out, everything else elsewhere."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from irv2.errors import InvalidRequest, Irv2Error
from irv2.v1 import classifier_pb2, classifier_pb2_grpc
from serve.metrics import Metrics
from serve.pipeline import Pipeline
from serve.status import status_from_error

logger = logging.getLogger(__name__)

# Requests of one stream that are worked on at a time; more wait in the client (flow control).
MAX_OPEN_PER_STREAM = 32

_Context = grpc.aio.ServicerContext[classifier_pb2.ClassifyRequest, classifier_pb2.ClassifyResponse]
_StreamContext = grpc.aio.ServicerContext[
    classifier_pb2.ClassifyStreamRequest, classifier_pb2.ClassifyStreamResponse
]
_ModelContext = grpc.aio.ServicerContext[
    classifier_pb2.GetModelRequest, classifier_pb2.GetModelResponse
]


class Classifier(classifier_pb2_grpc.ClassifierServicer):
    """The service; one per server."""

    def __init__(self, pipeline: Pipeline, metrics: Metrics, default_deadline_s: float) -> None:
        self._pipeline, self._metrics = pipeline, metrics
        self.default_deadline_s = default_deadline_s

    async def Classify(  # noqa: N802 (gRPC's name)
        self, request: classifier_pb2.ClassifyRequest, context: _Context
    ) -> classifier_pb2.ClassifyResponse:
        """Answer one request; a refused one ends with its status."""
        now = asyncio.get_running_loop().time()
        left_s = context.time_remaining()
        if left_s is None:
            left_s = self.default_deadline_s
        answer = await self.answer(request, now + left_s)
        if isinstance(answer, status_pb2.Status):
            await _abort(context, answer)
        return answer

    async def ClassifyStream(  # noqa: N802
        self,
        requests: AsyncIterator[classifier_pb2.ClassifyStreamRequest],
        context: _StreamContext,
    ) -> None:
        """Answer the requests of a stream in any order; a refused one does not end it."""
        await _Stream(self, context).answer_all(requests)

    async def GetModel(  # noqa: N802
        self, request: classifier_pb2.GetModelRequest, context: _ModelContext
    ) -> classifier_pb2.GetModelResponse:
        """Describe the model and the limits."""
        model, limits = self._pipeline.model, self._pipeline.limits
        return classifier_pb2.GetModelResponse(model=model, limits=limits)

    async def answer(
        self, request: classifier_pb2.ClassifyRequest, deadline: float
    ) -> classifier_pb2.ClassifyResponse | status_pb2.Status:
        """The response, or why there is none. `deadline` is on the event loop's clock."""
        try:
            response = await self._pipeline.classify(request, deadline)
        except asyncio.CancelledError:
            self._metrics.observe_request("cancelled")
            raise
        except Exception as error:
            if not isinstance(error, Irv2Error):
                logger.exception("request_failed")
            status = status_from_error(error)
            self._metrics.observe_request(code_pb2.Code.Name(status.code).lower())
            return status
        self._metrics.observe_request("ok")
        return response


class _Stream:
    """One call of ClassifyStream: its open requests and the one writer at a time gRPC allows."""

    def __init__(self, service: Classifier, context: _StreamContext) -> None:
        self._service, self._context = service, context
        self._open: set[str] = set()
        self._places = asyncio.Semaphore(MAX_OPEN_PER_STREAM)
        self._writing = asyncio.Lock()

    async def answer_all(
        self, messages: AsyncIterator[classifier_pb2.ClassifyStreamRequest]
    ) -> None:  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            async for message in messages:
                deadline = self._deadline(message.timeout_ms)
                refusal = self._check_id(message.request.id)
                if refusal:
                    await self._write(message.request.id, status_from_error(refusal))
                    continue
                self._open.add(message.request.id)
                await self._places.acquire()
                tasks.create_task(self._answer(message.request, deadline))

    def _deadline(self, timeout_ms: int) -> float:
        stream_left_s = self._context.time_remaining()
        limits_s = [timeout_ms / 1e3] if timeout_ms else []
        limits_s += [stream_left_s] if stream_left_s is not None else []
        return asyncio.get_running_loop().time() + min(
            limits_s, default=self._service.default_deadline_s
        )

    def _check_id(self, request_id: str) -> InvalidRequest | None:
        if not request_id:
            return InvalidRequest("request.id", "empty", "an id that is unique in its stream")
        if request_id in self._open:
            return InvalidRequest("request.id", f"{request_id!r} is still open", "another id")
        return None

    async def _answer(self, request: classifier_pb2.ClassifyRequest, deadline: float) -> None:
        try:
            answer = await self._service.answer(request, deadline)
            # Closed before it is written: with the answer the client may use the id again.
            self._open.remove(request.id)
            await self._write(request.id, answer)
        finally:
            self._places.release()

    async def _write(
        self, request_id: str, answer: classifier_pb2.ClassifyResponse | status_pb2.Status
    ) -> None:  # fmt: skip
        response = classifier_pb2.ClassifyStreamResponse(id=request_id)
        if isinstance(answer, status_pb2.Status):
            response.error.CopyFrom(answer)
        else:
            response.response.CopyFrom(answer)
        async with self._writing:
            await self._context.write(response)


async def _abort(context: _Context, status: status_pb2.Status) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")
