"""One model at work: its engine, queue and decoder, from a bundle to its last answer."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from irv2.bundle import Artifact, Bundle
from irv2.decode import ImageLimits
from irv2.errors import BundleError, UsageError
from irv2.runners.base import Runner
from irv2.runners.choose import open_best
from irv2.selftest import SELF_TEST, SelfTest
from irv2.v1 import classifier_pb2
from serve.batcher import Batcher
from serve.decoder import Decoder
from serve.metrics import Metrics, ModelMetrics, Statistics
from serve.options import ServeOptions
from serve.pipeline import Pipeline

WARM_UP_SIZES = (1, 2, 4, 8)
# Beyond this a CPU gains nothing from larger batches, and requests only wait longer.
CPU_MAX_BATCH = 8


class Opened(NamedTuple):
    """What of a bundle is served, and the engine that runs it."""

    bundle: Bundle
    artifact: Artifact
    runner: Runner


def open_model(path: Path, options: ServeOptions) -> Opened:
    """Open the fastest artefact that passed. Raises BundleError or EngineError."""
    bundle = Bundle.open(path)
    artifact, runner = open_best(bundle, options.precision, options.backend, options.num_threads)
    try:
        _check_fits(bundle, artifact, runner)
    except BundleError:
        runner.close()
        raise
    return Opened(bundle, artifact, runner)


class ServedModel:
    """Answers requests once `start` has returned. Belongs to one event loop."""

    def __init__(self, opened: Opened, options: ServeOptions, metrics: Metrics) -> None:
        bundle, self.artifact, self._runner = opened
        max_batch = _max_batch(self.artifact, self._runner, options.max_batch)
        self.model = _description(opened, max_batch)
        self.image_shape = (self._runner.image_size, self._runner.image_size, 3)
        self._metrics = ModelMetrics(metrics, self.model.id, lambda: int(time.time() * 1e3))
        image_limits = ImageLimits(
            max_bytes=options.max_image_bytes, max_pixels=options.max_image_pixels
        )
        num_threads = options.num_decode_threads or len(os.sched_getaffinity(0))
        self._decoder = Decoder(bundle.preprocess, image_limits, num_threads)
        self.batcher = Batcher(
            self._runner, max_batch=max_batch, max_queue=options.max_queue,
            max_queue_delay_ms=options.max_queue_delay_ms, prepare_s=self._decoder.predict,
            on_batch=self._metrics.observe_batch,
        )  # fmt: skip
        self.pipeline = Pipeline(
            self.model, options.limits, self._decoder, self.batcher, self._metrics
        )
        self._self_test = _self_test(bundle)
        self.self_test = "none"  # or "passed"

    @property
    def statistics(self) -> Statistics:
        """Sums since it took over."""
        return self._metrics.statistics

    async def start(self) -> None:
        """Self-test, then the whole way at every batch size. Raises EngineError or BundleError."""
        most = self.model.max_batch
        if self._self_test:
            await asyncio.to_thread(self._self_test.run, self._runner, sorted({1, most}))
            self._self_test = None  # its images are not needed again
            self.self_test = "passed"
        sizes = {size for size in WARM_UP_SIZES if size < most} | {most}
        await self.pipeline.warm_up(sorted(sizes))
        self.pipeline.is_serving = True

    async def close(self) -> None:
        """Answer what was admitted, then free the engine."""
        await self.batcher.close()
        self._decoder.close()
        self._runner.close()


def _self_test(bundle: Bundle) -> SelfTest | None:
    """None for bundles of before there were any; the ready line says so."""
    if SELF_TEST not in bundle.manifest.files:
        return None
    return SelfTest.load(bundle.path / SELF_TEST)


def _check_fits(bundle: Bundle, artifact: Artifact, runner: Runner) -> None:
    found = (runner.image_size, runner.num_classes)
    expected = (bundle.preprocess.crop, len(bundle.classes))
    if found != expected:
        raise BundleError(
            bundle.path / artifact.file,
            f"takes {found[0]} pixels and gives {found[1]} classes",
            f"{expected[0]} and {expected[1]}, as bundle.json says", "export it again",
        )  # fmt: skip
    sha256 = runner.metadata.get("preprocess_sha256", bundle.preprocess.sha256)
    if sha256 != bundle.preprocess.sha256:
        raise BundleError(
            bundle.path / artifact.file, f"was exported for preprocessing {sha256[:12]}",
            f"{bundle.preprocess.sha256[:12]}, as bundle.json says", "export it again",
        )  # fmt: skip


def _max_batch(artifact: Artifact, runner: Runner, asked_for: int | None) -> int:
    most = min(artifact.max_batch, runner.max_batch)
    if asked_for is None:
        return min(most, CPU_MAX_BATCH) if runner.backend.endswith("-cpu") else most
    if asked_for > most:
        raise UsageError("--max-batch", str(asked_for), f"at most {most}, what the gate certified")
    return asked_for


def _description(opened: Opened, max_batch: int) -> classifier_pb2.Model:
    bundle, artifact, runner = opened
    return classifier_pb2.Model(
        id=bundle.id,
        arch=bundle.manifest.source.arch,
        classes=bundle.classes,
        precision=artifact.precision,
        backend=runner.backend,
        max_batch=max_batch,
        preprocess_json=json.dumps(bundle.manifest.preprocess),
        parity_json=msgspec.json.encode(artifact.parity).decode(),
    )
