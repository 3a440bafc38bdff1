"""One request from admission through decoding and batching to its best classes, without gRPC."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
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
    RequestError,
)
from irv2.images.decode import ImageLimits
from irv2.protocol import status_from_error
from irv2.results import DEFAULT_TOP_K, ranked_scores
from irv2.serve.operations.metrics import ModelMetrics
from irv2.serve.pipeline.admission import Admission, Places
from irv2.serve.pipeline.batcher import Answer
from irv2.serve.pipeline.decode_pool import Decoder
from irv2.types import FloatArray, UInt8Array
from irv2.v1 import classifier_pb2

logger = logging.getLogger(__name__)
T = TypeVar("T")
# Hears of a crop, its best class, and the seconds that were left to the deadline.
OnAnswer = Callable[[UInt8Array, int, float], None]

WARM_UP_TIMEOUT_S = 60.0
MAX_ID_BYTES = 256


@dataclass(slots=True)
class _Outcome:
    """One image's result, and where its time went."""

    result: classifier_pb2.Result
    preprocess_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.preprocess_s + self.queue_s + self.inference_s


class Pipeline:
    """Answers requests with one model. Deadlines are times of the event loop's clock."""

    def __init__(
        self,
        model: classifier_pb2.Model,
        limits: classifier_pb2.Limits,
        decoder: Decoder,
        admission: Admission,
        metrics: ModelMetrics,
    ) -> None:
        self.model, self.limits = model, limits
        self._decoder, self._admission, self._metrics = decoder, admission, metrics
        self.is_serving = False
        self.on_answer: OnAnswer | None = None  # of clients' pictures
        self._classes = list(model.classes)  # a protobuf field is slow to index

    async def classify(
        self, request: classifier_pb2.ClassifyRequest, deadline: float
    ) -> classifier_pb2.ClassifyResponse:
        """Answer by `deadline` or raise a RequestError; images that fail do so alone."""
        arrived_at = asyncio.get_running_loop().time()
        self._check_request(request.id, len(request.images))
        async with self._admitted(len(request.images), deadline) as places:
            outcomes = await _all(
                self._classify_image(image, request.top_k, places, deadline)
                for image in request.images
            )
        slowest = max(outcomes, key=lambda outcome: outcome.total_s)
        timing = self._timing(slowest, slowest.preprocess_s, arrived_at)
        results = [outcome.result for outcome in outcomes]
        return classifier_pb2.ClassifyResponse(
            results=results, id=request.id, model_id=self.model.id, timing=timing
        )

    async def infer(self, images: UInt8Array, deadline: float, request_id: str = "") -> FloatArray:
        """Logits (N, num_classes) of all prepared images, uint8 (N, S, S, 3), or a RequestError."""
        arrived_at = asyncio.get_running_loop().time()
        self._check_request(request_id, len(images))
        async with self._admitted(len(images), deadline, prepared=True) as places:
            answers = await _all(self._answer(image, places, deadline) for image in images)
        slowest = max(answers, key=lambda answer: answer.queue_s + answer.inference_s)
        self._timing(slowest, 0.0, arrived_at)
        return np.stack([answer.logits for answer in answers])

    async def warm_up(self, num_images: int) -> None:
        """Answer a request of photographs, so that no client's is the first to go the whole way.

        Raises EngineError or Expired where it gets no answer.
        """
        photograph = classifier_pb2.Image(encoded=_photograph())

        async def classify(places: Places) -> None:
            prepared, _ = await self._decoder.decode(photograph, ImageLimits())
            await places.run(prepared.image_hwc)

        deadline = asyncio.get_running_loop().time() + WARM_UP_TIMEOUT_S
        async with self._admitted(num_images, deadline) as places:
            await _all(classify(places) for _ in range(num_images))

    async def warm_up_decoder(self) -> None:
        """Decode a photograph, whose time admission then knows."""
        await self._decoder.decode(classifier_pb2.Image(encoded=_photograph()), ImageLimits())

    def check(self, deadline: float) -> None:
        """Raise the RequestError that any request due by `deadline` would get, if there is one."""
        self._check_serving()
        try:
            # Its message, which would tell how many images it has, is not read yet.
            self._admission.check(1, deadline, prepared=True)
        except RequestError:
            self._metrics.observe_failure(0.0)
            raise

    def _check_serving(self) -> None:
        if not self.is_serving:
            raise NotServing("server", "is starting", way_out="ask again in a few seconds")

    def _check_request(self, request_id: str, num_images: int) -> None:
        self._check_serving()
        num_bytes = len(request_id.encode())
        if num_bytes > MAX_ID_BYTES:
            raise InvalidRequest("id", f"{num_bytes} bytes", f"at most {MAX_ID_BYTES}")
        most = self.limits.max_images
        if not 0 < num_images <= most:
            raise InvalidRequest("images", f"{num_images} of them", f"1 to {most}")

    @asynccontextmanager
    async def _admitted(
        self, num_images: int, deadline: float, *, prepared: bool = False
    ) -> AsyncIterator[Places]:
        """Places for the block; cancels it at `deadline` and raises Expired."""
        now = asyncio.get_running_loop().time
        arrived_at = now()
        try:
            with self._admission.admit(num_images, deadline, prepared=prepared) as places:
                try:
                    async with asyncio.timeout_at(deadline):
                        yield places
                except TimeoutError as error:
                    where = "engine" if places.was_running else "queue"
                    raise Expired("deadline", "passed before the answer", where) from error
        except BaseException:
            self._metrics.observe_failure(now() - arrived_at)
            raise

    async def _classify_image(
        self, image: classifier_pb2.Image, top_k: int, places: Places, deadline: float
    ) -> _Outcome:
        outcome = _Outcome(classifier_pb2.Result())
        try:
            prepared, outcome.preprocess_s = await self._decoder.decode(image)
            answer = await self._answer(prepared.image_hwc, places, deadline)
            outcome.queue_s, outcome.inference_s = answer.queue_s, answer.inference_s
            order = answer.order[: top_k or DEFAULT_TOP_K]
            scores = ranked_scores(answer.probabilities, order, self._classes)
        except Expired:
            raise  # the whole request fails
        except ImageError as error:
            self._fail(outcome, error, error.reason)
        except Exception as error:
            if not isinstance(error, EngineError):  # the batcher has logged those
                logger.exception("image_failed")
            self._fail(outcome, error, ImageReason.INTERNAL)
        else:
            if prepared.orientation:
                outcome.result.orientation = prepared.orientation
                self._metrics.observe_turned_image()
            outcome.result.scores.extend(
                classifier_pb2.Score(index=s.index, label=s.label, probability=s.probability)
                for s in scores
            )
        return outcome

    async def _answer(self, image: UInt8Array, places: Places, deadline: float) -> Answer:
        answer = await places.run(image)
        if self.on_answer:
            left_s = deadline - asyncio.get_running_loop().time()
            self.on_answer(image, int(answer.order[0]), left_s)
        return answer

    def _timing(
        self, slowest: _Outcome | Answer, preprocess_s: float, arrived_at: float
    ) -> classifier_pb2.Timing:
        """Count an answered request and say where its time went, by its slowest image."""
        timing = classifier_pb2.Timing(
            queue_us=round(slowest.queue_s * 1e6),
            preprocess_us=round(preprocess_s * 1e6),
            inference_us=round(slowest.inference_s * 1e6),
            total_us=round((asyncio.get_running_loop().time() - arrived_at) * 1e6),
        )
        self._metrics.observe_timing(timing)
        return timing

    def _fail(self, outcome: _Outcome, error: Exception, reason: ImageReason) -> None:
        outcome.result.error.CopyFrom(status_from_error(error))
        self._metrics.observe_image_error(reason)


def _photograph() -> bytes:
    """A JPEG of 500 x 375 pixels and 50 kB, which decodes as slowly as one from a camera."""
    blocks = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    image = np.ascontiguousarray(blocks.repeat(25, 0).repeat(25, 1))
    encoded: bytes = simplejpeg.encode_jpeg(image)
    return encoded


async def _all(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure is raised and cancels the rest."""
    first, *others = works
    if not others:  # the usual case needs no task of its own
        return [await first]
    tasks = [asyncio.create_task(work) for work in (first, *others)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
