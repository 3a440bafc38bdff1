"""A model's engine behind its queue: opened from a bundle, tested, watched, freed."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from irv2.bundle import Bundle
from irv2.errors import BundleError, UsageError
from irv2.manifest import SIGNATURE
from irv2.runners.base import Runner
from irv2.runners.choose import Choice, open_best
from irv2.self_test import SELF_TEST, SelfTest
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.batcher import Batcher
from irv2.types import UInt8Array
from irv2.v1 import classifier_pb2

logger = logging.getLogger(__name__)

WARM_UP_SIZES = (1, 2, 4, 8)  # of an artefact whose certified sizes are not known
# After this many failed batches in a row, the engine is tried on the self-test's images.
SUSPECT_AFTER = 3
RETRY_S = 1.0  # between two tries of a broken engine

OnHealth = Callable[[], Awaitable[None]]
Signed = Literal["verified", "unchecked", "none"]  # unchecked: without --require-signature


class OpenedModel(NamedTuple):
    """A bundle, and the one of its artefacts that is served, with the engine that runs it."""

    bundle: Bundle
    choice: Choice


def open_model(path: Path, options: ServeOptions) -> OpenedModel:
    """Open the fastest artefact that passed. Raises BundleError or EngineError.

    What has been checked is what the engine read: a link to the folder is followed once, and a
    folder that is written to meanwhile is refused.
    """
    folder = path if path.resolve() == path.absolute() else path.resolve()
    before = _changes(folder)
    opened = _open(folder, options)
    if _changes(folder) != before:
        opened.choice.runner.close()
        got, expected = "was changed while it was opened", "a folder that nobody writes to"
        raise BundleError(path, got, expected, "write the new one beside it, rename it, try again")
    return opened


def _changes(folder: Path) -> dict[Path, tuple[int, int]]:
    """When a folder and each file in it was last changed, by the time that no program can set."""
    try:
        found = {path: path.stat() for path in (folder, *folder.iterdir())}
    except OSError:  # it is not there, or goes at this moment: opening says so
        return {}
    return {path: (status.st_ctime_ns, status.st_size) for path, status in found.items()}


def _open(path: Path, options: ServeOptions) -> OpenedModel:
    bundle = Bundle.open(path)
    if options.require_signature:
        _check_signature(bundle, options.require_signature)
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


def _check_signature(bundle: Bundle, trusted: Path) -> None:
    """Raise BundleError unless whom the file names has signed it, before an engine reads it."""
    from irv2.trust.check import require_signature
    from irv2.trust.keys import read_trusted  # brings cryptography for this alone

    require_signature(bundle, read_trusted(trusted))  # read anew, since keys may be replaced


class Engine:
    """Runs batches, and the self-test where they fail. Belongs to one event loop."""

    def __init__(
        self,
        opened: OpenedModel,
        options: ServeOptions,
        on_health: OnHealth,
        on_batch: Callable[[int, float], None],
        on_change: Callable[[], None] = lambda: None,
        *,
        ranks: bool = True,
    ) -> None:
        """`on_health` is called when `is_healthy` has changed; the others are the batcher's."""
        bundle, choice = opened
        self.artifact, self._evidence, self._runner, self.how_chosen = choice
        max_batch = _max_batch(self._runner, options.max_batch)
        _check_streams(self._runner, options.num_streams)
        self.description = _description(opened, max_batch)
        self.image_shape = (self._runner.image_size, self._runner.image_size, 3)
        self.num_threads = self._runner.num_threads
        self.batcher = Batcher(
            self._runner,
            max_batch=max_batch,
            max_queue_delay_ms=options.max_queue_delay_ms,
            on_batch=self._note_batch,
            on_failure=self._note_failure,
            on_change=on_change,
            ranks=ranks,
        )
        self.artifacts, self.signature = bundle.artifacts, _signature(bundle, options)
        self._self_test = _self_test(bundle)
        self.self_test = "none"  # or "passed"
        self.is_healthy, self._on_health, self._on_batch = True, on_health, on_batch
        self._num_failed = 0  # batches, since every stream ran one well
        self._num_well = 0  # batches in a row
        self._trial: asyncio.Task[None] | None = None

    @property
    def sizes(self) -> list[int]:
        """1, the largest batch, and those in between that give each engine a certified size.

        Where batches are made of parts, these tell what all batches will do, and how long they
        take.
        """
        most = self.batcher.max_batch
        if self._runner.part_sizes:
            return sorted(size for size in self._runner.part_sizes if size <= most)
        certified = self._evidence.invariance
        sizes = certified.batch_sizes if certified else WARM_UP_SIZES
        batches = [self._runner.num_engines * size for size in sizes]
        return sorted({1, most, *(size for size in batches if size < most)})

    async def test(self) -> None:
        """Pass the self-test in a batch of each of `sizes`. Raises EngineError."""
        for size in self.sizes:
            await self._try(size)
        self.self_test = "passed" if self._self_test else "none"

    def register(self, images: UInt8Array) -> None:
        """Let a GPU fetch images from this memory, where all will lie. Raises EngineError."""
        self._runner.register(images)

    def stop_trials(self) -> None:
        """Let no trial of a broken engine go on."""
        if self._trial:
            self._trial.cancel()

    def free(self) -> None:
        """Free the engine, once the batcher is closed; this may take long."""
        self._runner.close()

    async def _try(self, size: int) -> None:
        """Run the self-test as one batch on each stream, or a blank one where there is none.

        Raises EngineError.
        """
        if self._self_test:
            for logits in await self.batcher.run_apart(self._self_test.batch(size)):
                self._self_test.check(logits, self._runner.backend)
        else:
            await self.batcher.run_apart(np.zeros((size, *self.image_shape), np.uint8))

    def _note_batch(self, size: int, seconds: float) -> None:
        self._num_well += 1
        if self._num_well >= self.batcher.num_streams:  # else a broken one may be among them
            self._num_failed = 0
        self._on_batch(size, seconds)

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
            await self._try(self._runner.num_engines)  # one image each
        except Exception as error:  # an engine's library may raise anything
            return error
        return None


def _signature(bundle: Bundle, options: ServeOptions) -> Signed:
    if options.require_signature:  # else it would not have been opened
        return "verified"
    return "unchecked" if (bundle.path / SIGNATURE).exists() else "none"


def _self_test(bundle: Bundle) -> SelfTest | None:
    """The bundle's self-test; None for bundles older than it, as the ready line says."""
    if SELF_TEST not in bundle.manifest.files:
        return None
    return SelfTest.load(bundle.path / SELF_TEST)


def _max_batch(runner: Runner, asked_for: int | None) -> int:
    """The largest batch of all engines together; each runs at most what the gate certified."""
    if asked_for is None:
        return runner.usual_batch
    if asked_for > (most := runner.max_batch):
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
