"""How long batches take while all streams are busy, from which admission and batcher predict."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from irv2.types import Float64Array


class BatchTimes:
    """Times of each batch size: an exponential average of those measured, and the fastest.

    No slow batch (a machine that slept) can change the fastest.
    """

    WEIGHT = 0.2  # of the newest; after three batches, half of the past is forgotten

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._fastest: dict[int, float] = {}
        self._sizes: list[int] = []

    def learn(self, size: int, seconds: float, *, all_busy: bool = True) -> None:
        """Count a batch of `size` images that took `seconds`.

        Unless all streams were busy meanwhile, it was quicker than under load, for which promises
        are made: it counts as no quicker than the fastest beside busy ones. It does count, or a
        slow batch would be believed for as long as a stream is idle now and then.
        """
        fastest = self._fastest.get(size, seconds)
        if all_busy:
            self._fastest[size] = min(seconds, fastest)
        else:
            seconds = max(seconds, fastest)
        before = self._seconds.get(size, seconds)
        self._seconds[size] = before + self.WEIGHT * (seconds - before)
        self._sizes = sorted(self._seconds)

    def fastest(self, size: int) -> float:
        """Seconds of the fastest batch of `size` images; 0 before any has run."""
        return self._fastest.get(size, 0.0)

    def starts_at(self, place: int, size: int, free_at: Sequence[float]) -> float:
        """When the batch in that place, from 0, starts, if all before are of `size` images.

        `free_at` says when each stream is free, sorted. They take turns, as all take equally long.
        """
        rounds, stream = divmod(place, len(free_at))
        return free_at[stream] + rounds * self.predict(size)

    def predict(self, size: int) -> float:
        """Seconds for `size` images: interpolated, proportional beyond the largest, 0 at first."""
        if not self._sizes:
            return 0.0
        above = bisect_left(self._sizes, size)
        if above == len(self._sizes):
            return self._seconds[self._sizes[-1]] * size / self._sizes[-1]
        upper = self._sizes[above]
        lower = self._sizes[max(above - 1, 0)]
        if size <= lower or size == upper:
            return self._seconds[upper]
        part = (size - lower) / (upper - lower)
        return self._seconds[lower] + part * (self._seconds[upper] - self._seconds[lower])

    def write(self, predicted: Float64Array, fastest: Float64Array) -> None:
        """Write what `predict` and `fastest` say, by size, into these arrays."""
        if not self._sizes:
            return
        sizes, largest = np.arange(len(predicted)), self._sizes[-1]
        known = [self._seconds[size] for size in self._sizes]
        beyond = np.maximum(sizes / largest, 1)
        predicted[:] = np.interp(sizes, self._sizes, known) * beyond
        for size, seconds in self._fastest.items():
            fastest[size] = seconds
