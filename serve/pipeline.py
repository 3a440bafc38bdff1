"""The way of one request: admission, decoding, batch, best classes. No gRPC context in it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import simplejpeg

from irv2.errors import (
    EngineError,
    Expired,
    ImageError,
    ImageReason,
    InvalidRequest,
    NotServing,
)
from irv2.results import DEFAULT_TOP_K, ranked_scores
from irv2.types import FloatArray, UInt8Array
from irv2.v1 import classifier_pb2
from serve.batcher import Admission, Batcher
from serve.decoder import Decoder
from serve.metrics import ModelMetrics
from serve.status import status_from_error

logger = logging.getLogger(__name__)
T = TypeVar("T")

WARM_UP_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Outcome:
    """What became of one image, and when; seconds."""

    result: classifier_pb2.Result
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.preprocess_s + self.queue_s + self.inference_s


class Pipeline:
    """Answers requests with one model. Times are the event loop's clock."""

    def __init__(
        self,
        model: classifier_pb2.Model,
        limits: classifier_pb2.Limits,
        decoder: Decoder,
        batcher: Batcher,
        metrics: ModelMetrics,
    ) -> None:
        self.model, self.limits = model, limits
        self._decoder, self._batcher, self._metrics = decoder, batcher, metrics
        self.is_serving = False
        self._classes = list(model.classes)  # a protobuf field is slow to index

    async def classify(
        self, request: classifier_pb2.ClassifyRequest, deadline: float
    ) -> classifier_pb2.ClassifyResponse:  # fmt: skip
        """Answer by `deadline` or raise a RequestError; images that fail do so alone."""
        arrived_at = asyncio.get_running_loop().time()
        self._check(len(request.images))
        async with _until(deadline):
            outcomes = await self._classify_images(request, deadline)
        slowest = max(outcomes, key=lambda outcome: outcome.total_s)
        timing = classifier_pb2.Timing(
            queue_us=round(slowest.queue_s * 1e6),
            preprocess_us=round(slowest.preprocess_s * 1e6),
            inference_us=round(slowest.inference_s * 1e6),
            total_us=round((asyncio.get_running_loop().time() - arrived_at) * 1e6),
        )
        self._metrics.observe_timing(timing)
        results = [outcome.result for outcome in outcomes]
        return classifier_pb2.ClassifyResponse(
            results=results, id=request.id, model_id=self.model.id, timing=timing
        )

    async def infer(self, images: UInt8Array, deadline: float) -> FloatArray:
        """Logits (N, num_classes) of prepared images, uint8 (N, S, S, 3), all of them or none."""
        arrived_at = asyncio.get_running_loop().time()
        self._check(len(images))
        async with _until(deadline):
            with self._batcher.admit(len(images), deadline, prepared=True) as admission:
                answers = await _all(admission.run(image) for image in images)
        slowest = max(answers, key=lambda answer: answer.queue_s + answer.inference_s)
        timing = classifier_pb2.Timing(
            queue_us=round(slowest.queue_s * 1e6),
            inference_us=round(slowest.inference_s * 1e6),
            total_us=round((asyncio.get_running_loop().time() - arrived_at) * 1e6),
        )
        self._metrics.observe_timing(timing)
        return np.stack([answer.logits for answer in answers])

    async def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Go the whole way once, so that no request pays for the first time of anything.

        Raises EngineError where the answer to a blank photograph is an error.
        """
        await self._batcher.warm_up(batch_sizes)
        blank = simplejpeg.encode_jpeg(np.zeros((375, 500, 3), np.uint8))
        request = classifier_pb2.ClassifyRequest(images=[classifier_pb2.Image(encoded=blank)])
        deadline = asyncio.get_running_loop().time() + WARM_UP_TIMEOUT_S
        (outcome,) = await self._classify_images(request, deadline)
        if outcome.result.HasField("error"):
            raise EngineError("warm-up", outcome.result.error.message, "an answer")

    def _check(self, num_images: int) -> None:
        if not self.is_serving:
            raise NotServing("server", "is starting", way_out="ask again in a few seconds")
        most = self.limits.max_images
        if not 0 < num_images <= most:
            raise InvalidRequest("images", f"{num_images} of them", f"1 to {most}")

    async def _classify_images(
        self, request: classifier_pb2.ClassifyRequest, deadline: float
    ) -> list[_Outcome]:  # fmt: skip
        with self._batcher.admit(len(request.images), deadline) as admission:
            return await _all(
                self._classify_image(image, request.top_k, admission) for image in request.images
            )

    async def _classify_image(
        self, image: classifier_pb2.Image, top_k: int, admission: Admission
    ) -> _Outcome:  # fmt: skip
        outcome = _Outcome(classifier_pb2.Result())
        try:
            image_hwc, outcome.preprocess_s = await self._decoder.decode(image)
            answer = await admission.run(image_hwc)
            outcome.queue_s, outcome.inference_s = answer.queue_s, answer.inference_s
            order = answer.order[: top_k or DEFAULT_TOP_K]
            scores = ranked_scores(answer.probabilities, order, self._classes)
        except Expired:
            raise  # with the whole request
        except ImageError as error:
            self._fail(outcome, error, error.reason)
        except EngineError as error:  # the batcher has logged it
            self._fail(outcome, error, ImageReason.INTERNAL)
        except Exception as error:
            logger.exception("image_failed")
            self._fail(outcome, error, ImageReason.INTERNAL)
        else:
            outcome.result.scores.extend(
                classifier_pb2.Score(index=s.index, label=s.label, probability=s.probability)
                for s in scores
            )
        return outcome

    def _fail(self, outcome: _Outcome, error: Exception, reason: ImageReason) -> None:
        outcome.result.error.CopyFrom(status_from_error(error))
        self._metrics.observe_image_error(reason)


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    """Cancel the block at `deadline` and raise Expired."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError as error:
        raise Expired("deadline", "passed before the answer") from error


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order, or the first failure, which cancels the rest."""
    first, *others = works
    if not others:  # the usual case needs no task of its own
        return [await first]
    tasks = [asyncio.create_task(work) for work in (first, *others)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
