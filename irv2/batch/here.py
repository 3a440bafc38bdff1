"""Answers from a bundle on this machine: threads read and decode while the engine runs."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from irv2.batch.loading import load, map_ahead
from irv2.batch.parts import Row
from irv2.batch.source import Picture, Source
from irv2.bundle import Bundle
from irv2.errors import ImageError
from irv2.images.decode import FILE_LIMITS
from irv2.images.preprocess import Prepared, prepare
from irv2.results import Result, top_k_scores
from irv2.runners.base import CPU_MAX_BATCH
from irv2.runners.choose import open_best
from irv2.system.machine import num_cores
from irv2.types import FloatArray, UInt8Array

GPU_BATCH = 64
BATCHES_AHEAD = 2  # of each stream, read and decoded; evens out what takes long


@dataclass(frozen=True, slots=True)
class _Loaded:
    name: str
    sha256: str
    prepared: Prepared | None = None
    error: ImageError | None = None


class Here(AbstractContextManager["Here"]):
    """The artefact of a bundle that a server on this machine would choose."""

    def __init__(self, path: Path, source: Source, top_k: int, workers: int | None) -> None:
        """Open the bundle; raises BundleError if nothing in it can run here.

        `workers` is the number of threads that read and decode; None takes one per core.
        """
        self._bundle = Bundle.open(path)
        best = open_best(self._bundle.path, self._bundle.artifacts)
        self._bundle.require_fit(best.artifact, best.runner)
        self._runner = best.runner
        self._source, self._top_k = source, top_k
        self._workers = workers or num_cores()
        self.model_id = self._bundle.id
        self.name = f"{best.artifact.file} on {best.evidence.backend}"

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def answers(self, pictures: Iterable[Picture]) -> Iterator[Row]:
        """Yield the answers in order. Raises EngineError if the engine fails."""
        is_cpu = self._runner.backend.endswith("-cpu")
        size = min(self._runner.max_batch, CPU_MAX_BATCH if is_cpu else GPU_BATCH)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as pool:
            try:
                ahead = BATCHES_AHEAD * size * self._runner.num_streams
                yield from self._answers(map_ahead(pool, self._load, pictures, ahead), size)
            finally:
                pool.shutdown(cancel_futures=True)

    def _load(self, picture: Picture) -> _Loaded:
        encoded = load(self._source, picture)
        loaded = partial(_Loaded, encoded.name, encoded.sha256)
        if encoded.error:
            return loaded(error=encoded.error)
        try:
            return loaded(prepare(encoded.content, self._bundle.preprocess, FILE_LIMITS))
        except ImageError as error:
            return loaded(error=error)

    def _answers(self, loaded: Iterator[_Loaded], size: int) -> Iterator[Row]:
        running: deque[list[_Loaded]] = deque()  # the pictures of batches, with bad ones between

        def batches() -> Iterator[UInt8Array]:
            group: list[_Loaded] = []
            crops: list[UInt8Array] = []
            for each in loaded:
                group.append(each)
                if each.prepared:
                    crops.append(each.prepared.image_hwc)
                if len(crops) == size:
                    running.append(group)
                    yield np.stack(crops)
                    group, crops = [], []
            running.append(group)
            if crops:
                yield np.stack(crops)

        for logits in self._runner.map(batches()):
            yield from self._rows(running.popleft(), logits)
        if running:  # bad pictures alone, at the end
            yield from self._rows(running.popleft(), np.empty((0, 0), np.float32))

    def _rows(self, group: list[_Loaded], logits: FloatArray) -> Iterator[Row]:
        rows = iter(logits)
        for each in group:
            if each.prepared:
                scores = top_k_scores(next(rows), self._bundle.classes, self._top_k)
                result = Result(scores, orientation=each.prepared.orientation)
            else:
                result = Result(error=each.error)
            yield Row(each.name, each.sha256, result)
