"""One model that serves: its engine, queue and decoder, from its bundle to its last answer."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from irv2.bundle import Bundle
from irv2.errors import UsageError
from irv2.images.decode import ImageLimits
from irv2.manifest import Evidence
from irv2.runners.base import CPU_MAX_BATCH, Runner
from irv2.runners.choose import Choice, open_best
from irv2.self_test import SELF_TEST, SelfTest
from irv2.serve.operations.metrics import Metrics, ModelMetrics, Statistics, Sums
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.admission import Admission, LocalPromises
from irv2.serve.pipeline.batcher import Batcher
from irv2.serve.pipeline.decode_pool import Decoder
from irv2.serve.pipeline.request import Pipeline
from irv2.system.machine import num_cores
from irv2.v1 import classifier_pb2

logger = logging.getLogger(__name__)

WARM_UP_SIZES = (1, 2, 4, 8)  # of an artefact whose certified sizes are not known
# After this many failed batches in a row, the engine is tried on the self-test's images.
SUSPECT_AFTER = 3
RETRY_S = 1.0  # between two tries of a broken engine

OnHealth = Callable[[], Awaitable[None]]


class OpenedModel(NamedTuple):
    """A bundle, and the one of its artefacts that is served, with the engine that runs it."""

    bundle: Bundle
    choice: Choice


def open_model(path: Path, options: ServeOptions) -> OpenedModel:
    """Open the fastest artefact that passed. Raises BundleError or EngineError."""
    bundle = Bundle.open(path)
    choice = open_best(
        bundle.path,
        bundle.artifacts,
        options.precision,
        options.backend,
        options.num_threads,
        options.num_gpus,
        options.num_streams,
        measure=options.choose == "measure",
    )
    try:
        bundle.require_fit(choice.artifact, choice.runner)
    except BaseException:
        choice.runner.close()
        raise
    return OpenedModel(bundle, choice)


async def start_model(
    opened: OpenedModel, options: ServeOptions, metrics: Metrics, on_health: OnHealth
) -> "ServedModel":
    """Start a model, or free its engine. Raises EngineError, BundleError or UsageError."""
    try:
        model = ServedModel(opened, options, metrics, on_health)
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
        """`on_health` is called when `is_healthy` has changed."""
        bundle, choice = opened
        self.artifact, self._evidence, self._runner, self.how_chosen = choice
        max_batch = _max_batch(self._runner, options.max_batch)
        _check_streams(self._runner, options.num_streams)
        self.description = _description(opened, max_batch)
        self.image_shape = (self._runner.image_size, self._runner.image_size, 3)
        self._metrics = ModelMetrics(metrics, self.description.id, Sums.of_one_process(max_batch))
        image_limits = ImageLimits(
            max_bytes=options.max_image_bytes, max_pixels=options.max_image_pixels
        )
        self.num_threads = self._runner.num_threads  # of the engine
        self.num_workers = options.num_decode_threads or num_cores()
        self._decoder = Decoder(bundle.preprocess, image_limits, self.num_workers)
        self._batcher = Batcher(
            self._runner,
            max_batch=max_batch,
            max_queue_delay_ms=options.max_queue_delay_ms,
            on_batch=self._note_batch,
            on_failure=self._note_failure,
        )
        promises = LocalPromises(self._batcher)
        self.admission = Admission(
            self._batcher, promises, options.max_queue, self._decoder.predict
        )
        self.pipeline = Pipeline(
            self.description, options.limits, self._decoder, self.admission, self._metrics
        )
        self._self_test = _self_test(bundle)
        self.self_test = "none"  # or "passed"
        self.is_healthy, self._on_health = True, on_health
        self._num_failed = 0  # batches, since every stream ran one well
        self._num_well = 0  # batches in a row
        self._trial: asyncio.Task[None] | None = None

    @property
    def statistics(self) -> Statistics:
        """What the model has done since it took over."""
        return self._metrics.statistics

    @property
    def num_streams(self) -> int:
        """Batches that run at once."""
        return self._runner.num_streams

    @property
    def num_running(self) -> int:
        """Batches that run now."""
        return self._batcher.num_running

    async def start(self) -> None:
        """Pass the self-test and warm up, at every certified batch size. Raises EngineError."""
        sizes = _warm_up_sizes(self._evidence, self._runner.num_engines, self.description.max_batch)
        for size in sizes:
            await self._try_engine(size)
        for size in sizes:
            await self.pipeline.warm_up(size)
        self.self_test = "passed" if self._self_test else "none"
        self.pipeline.is_serving = True

    async def close(self) -> None:
        """Answer what was admitted, then free the engine."""
        if self._trial:
            self._trial.cancel()
        await self.admission.close()
        # Either may take long, and requests to another model must not wait for it.
        await asyncio.to_thread(self._decoder.close)
        await asyncio.to_thread(self._runner.close)

    async def _try_engine(self, size: int) -> None:
        """Run the self-test as one batch on each stream, or a blank one where there is none.

        Raises EngineError.
        """
        if self._self_test:
            for logits in await self._batcher.run_apart(self._self_test.batch(size)):
                self._self_test.check(logits, self._runner.backend)
        else:
            await self._batcher.run_apart(np.zeros((size, *self.image_shape), np.uint8))

    def _note_batch(self, size: int, seconds: float) -> None:
        self._num_well += 1
        if self._num_well >= self.num_streams:  # else one that is broken may be among them
            self._num_failed = 0
        if self.pipeline.is_serving:
            self._metrics.observe_batch(size, seconds)

    def _note_failure(self) -> None:
        self._num_well = 0
        self._num_failed += 1
        if self._num_failed >= SUSPECT_AFTER and (self._trial is None or self._trial.done()):
            self._num_failed = 0
            self._trial = asyncio.create_task(self._try_until_it_passes())

    async def _try_until_it_passes(self) -> None:
        while (error := await self._failure()) is not None:
            if self.is_healthy:
                logger.error("engine_broken error=%s", error)
                self.is_healthy = False
                await self._on_health()
            await asyncio.sleep(RETRY_S)
        if not self.is_healthy:
            logger.info("engine_recovered")
            self.is_healthy = True
            await self._on_health()

    async def _failure(self) -> Exception | None:
        try:
            await self._try_engine(self._runner.num_engines)  # one image each
        except Exception as error:  # an engine's library may raise anything
            return error
        return None


def _warm_up_sizes(evidence: Evidence, num_engines: int, most: int) -> list[int]:
    """1, `most`, and the batches in between that give each engine a certified size."""
    certified = evidence.invariance.batch_sizes if evidence.invariance else WARM_UP_SIZES
    batches = [num_engines * size for size in certified]
    return sorted({1, most, *(size for size in batches if size < most)})


def _self_test(bundle: Bundle) -> SelfTest | None:
    """The bundle's self-test; None for bundles older than it, as the ready line says."""
    if SELF_TEST not in bundle.manifest.files:
        return None
    return SelfTest.load(bundle.path / SELF_TEST)


def _max_batch(runner: Runner, asked_for: int | None) -> int:
    """The largest batch of all engines together; each runs at most what the gate certified."""
    most = runner.max_batch
    if asked_for is None:
        return min(most, CPU_MAX_BATCH) if runner.backend.endswith("-cpu") else most
    if asked_for > most:
        raise UsageError("--max-batch", str(asked_for), f"at most {most}, what the gate certified")
    return asked_for


def _check_streams(runner: Runner, asked_for: int | None) -> None:
    if asked_for not in (None, runner.num_streams):
        way_out = "streams are parts of a CPU, see --backend"
        expected = f"{runner.num_streams} on {runner.backend}"
        raise UsageError("--streams", str(asked_for), expected, way_out)


def _description(opened: OpenedModel, max_batch: int) -> classifier_pb2.Model:
    bundle, (artifact, evidence, runner, how) = opened
    return classifier_pb2.Model(
        id=bundle.id,
        arch=bundle.manifest.source.arch,
        classes=bundle.classes,
        precision=artifact.precision,
        backend=runner.backend,
        max_batch=max_batch,
        preprocess_json=json.dumps(bundle.manifest.preprocess),
        parity_json=msgspec.json.encode(evidence.parity).decode(),
        choice=how,
    )
