"""One model that serves: its engine, queue and decoder, from its bundle to its last answer."""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from irv2.images.decode import ImageLimits
from irv2.serve.operations.metrics import Metrics, ModelMetrics, Statistics, Sums
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.admission import Admission, LocalPromises
from irv2.serve.pipeline.decode_pool import Decoder
from irv2.serve.pipeline.engine import Engine, OnHealth, OpenedModel
from irv2.serve.pipeline.request import Pipeline
from irv2.system.machine import num_cores
from irv2.v1 import classifier_pb2


class Model(Protocol):
    """What services ask of the model that answers their requests."""

    description: classifier_pb2.Model
    artifact_file: str
    image_shape: tuple[int, int, int]
    pipeline: Pipeline

    @property
    def statistics(self) -> Statistics:
        """What the model has done since it took over."""


class Startable(Protocol):
    """A model before it serves."""

    async def start(self) -> None:
        """Test the engine and warm up. Raises EngineError."""

    async def close(self) -> None:
        """Answer what was admitted, then free the engine."""


M = TypeVar("M", bound=Startable)


async def start_model(
    build: Callable[[OpenedModel, ServeOptions, Metrics, OnHealth], M],
    opened: OpenedModel,
    options: ServeOptions,
    metrics: Metrics,
    on_health: OnHealth,
) -> M:
    """Build and start a model, or free its engine.

    Raises EngineError, BundleError or UsageError.
    """
    try:
        model = build(opened, options, metrics, on_health)
    except BaseException:
        await asyncio.to_thread(opened.choice.runner.close)
        raise
    try:
        await model.start()
    except BaseException:
        await model.close()
        raise
    return model


class ServedModel:
    """Answers requests once `start` has returned. Belongs to one event loop."""

    def __init__(
        self, opened: OpenedModel, options: ServeOptions, metrics: Metrics, on_health: OnHealth
    ) -> None:
        """`on_health` is called when the engine's `is_healthy` has changed."""
        self.engine = engine = Engine(opened, options, on_health, self._note_batch)
        batcher, self.description = engine.batcher, engine.description
        self.artifact_file, self.image_shape = engine.artifact.file, engine.image_shape
        sums = Sums.of_one_process(batcher.max_batch)
        self._metrics = ModelMetrics(metrics, self.description.id, sums)
        image_limits = ImageLimits(
            max_bytes=options.max_image_bytes, max_pixels=options.max_image_pixels
        )
        self.num_workers = options.num_decode_threads or num_cores()
        self._decoder = Decoder(opened.bundle.preprocess, image_limits, self.num_workers)
        promises = LocalPromises(batcher)
        self.admission = Admission(batcher, promises, options.max_queue, self._decoder.predict)
        self.pipeline = Pipeline(
            self.description, options.limits, self._decoder, self.admission, self._metrics
        )

    @property
    def statistics(self) -> Statistics:
        """What the model has done since it took over."""
        return self._metrics.statistics

    async def start(self) -> None:
        """Pass the self-test and warm up, at every certified batch size. Raises EngineError."""
        await self.engine.test()
        for size in self.engine.sizes:
            await self.pipeline.warm_up(size)
        self.pipeline.is_serving = True

    async def close(self) -> None:
        """Answer what was admitted, then free the engine."""
        self.engine.stop_trials()
        await self.admission.close()
        # Either may take long, and requests to another model must not wait for it.
        await asyncio.to_thread(self._decoder.close)
        await asyncio.to_thread(self.engine.free)

    def _note_batch(self, size: int, seconds: float) -> None:
        if self.pipeline.is_serving:
            self._metrics.observe_batch(size, seconds)
