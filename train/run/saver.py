"""Saving checkpoints in the background of training.

Training pauses only for a copy of the state in memory; a thread hashes and writes it. The file
appears by rename (Checkpoint.save), so the last good one stays until the next is complete.
"""

import copy
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from irv2.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


class Saver:
    """Writes one checkpoint at a time in the background; a context manager that ends its thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "saver")
        self._writing: Future[None] | None = None
        self.took_s = 0.0  # the last save, pause and write

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def save(self, checkpoint: Checkpoint, path: Path) -> None:
        """Start writing `checkpoint`. Raises the error of the write before, if it failed."""
        started = time.monotonic()
        self.wait()
        mine = copy.deepcopy(checkpoint)
        paused_s = time.monotonic() - started
        self._writing = self._pool.submit(self._write, mine, path, paused_s)

    @property
    def has_failed(self) -> bool:
        """Whether a write has failed; `wait` raises its error."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def wait(self) -> None:
        """Wait until the file is complete; raises the error if the write failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, checkpoint: Checkpoint, path: Path, paused_s: float) -> None:
        started = time.monotonic()
        checkpoint.save(path)
        written_s = time.monotonic() - started
        self.took_s = paused_s + written_s
        logger.info(
            "saved %s after step %d: training paused %.3f s, written in %.3f s",
            path,
            checkpoint.step,
            paused_s,
            written_s,
        )
