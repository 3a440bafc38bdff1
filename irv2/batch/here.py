"""Answers from a bundle on this machine: threads read and decode while the engine runs."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from irv2.batch.loading import load, untraced
from irv2.batch.parts import Row
from irv2.batch.source import Picture, Source
from irv2.bundle import Bundle
from irv2.errors import ImageError
from irv2.images.decode import FILE_LIMITS
from irv2.images.preprocess import Prepared, prepare
from irv2.results import Result, top_k_scores
from irv2.runners.base import CPU_MAX_BATCH
from irv2.runners.choose import open_best
from irv2.system.ahead import map_ahead
from irv2.system.machine import num_cores

GPU_BATCH = 64
MOST_IN_GROUP = 256  # bad pictures included, which wait for no engine
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
        num_streams = self._runner.num_streams
        with (
            ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as decoders,
            ThreadPoolExecutor(num_streams, thread_name_prefix="engine") as engine,
        ):
            try:
                ahead = BATCHES_AHEAD * size * num_streams
                loaded = map_ahead(decoders, self._load, pictures, ahead)
                for rows in map_ahead(engine, self._rows, _groups(loaded, size), num_streams):
                    yield from rows
            finally:
                decoders.shutdown(cancel_futures=True)
                engine.shutdown(cancel_futures=True)

    def _load(self, picture: Picture) -> _Loaded:
        encoded = load(self._source, picture)
        loaded = partial(_Loaded, encoded.name, encoded.sha256)
        if encoded.error:
            return loaded(error=encoded.error)
        try:
            return loaded(prepare(encoded.content, self._bundle.preprocess, FILE_LIMITS))
        except ImageError as error:
            return loaded(error=untraced(error, picture.name))

    def _rows(self, group: list[_Loaded]) -> list[Row]:
        crops = [each.prepared.image_hwc for each in group if each.prepared]
        logits = iter(self._runner.run(np.stack(crops)) if crops else ())
        rows = []
        for each in group:
            if each.prepared:
                scores = top_k_scores(next(logits), self._bundle.classes, self._top_k)
                result = Result(scores, orientation=each.prepared.orientation)
            else:
                result = Result(error=each.error)
            rows.append(Row(each.name, each.sha256, result))
        return rows


def _groups(loaded: Iterable[_Loaded], size: int) -> Iterator[list[_Loaded]]:
    """Group pictures so that each group has up to `size` good ones, and not too many bad ones."""
    group: list[_Loaded] = []
    num_good = 0
    for each in loaded:
        group.append(each)
        num_good += each.prepared is not None
        if num_good == size or len(group) == MOST_IN_GROUP:
            yield group
            group, num_good = [], 0
    if group:
        yield group
