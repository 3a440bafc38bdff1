"""How many images runners classify per second, by a measurement of a second or so each."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from irv2.runners.base import Runner

ROUNDS, ROUND_S = 3, 0.3
MAX_BATCHES = 20  # of a round on one stream, enough for a network that takes milliseconds


def images_per_s(runners: Sequence[Runner]) -> list[float]:
    """Measure each runner in turn, with batches of a server's size on all of its streams.

    The median of interleaved rounds, so that a machine that slows down slows all of them. Raises
    EngineError.
    """
    from irv2.system.progress import (
        progress,
    )  # brings tqdm; a server that measures nothing has none

    shown = progress(range(ROUNDS + 1), "time the engines", ROUNDS + 1, "rounds")
    rounds = [[_rate(runner) for runner in runners] for _ in shown]
    return [round(median(rates), 1) for rates in zip(*rounds[1:], strict=True)]  # one to warm up


def _rate(runner: Runner) -> float:
    return rate_of(runner, runner.usual_batch, ROUND_S, MAX_BATCHES)


def rate_of(runner: Runner, size: int, seconds: float, max_batches: int | None = None) -> float:
    """Images per second with batches of `size` on every stream for so long, or so many."""
    shape = (size, runner.image_size, runner.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def work(_: int) -> list[float]:
        """The times at which batches ended."""
        ends: list[float] = []
        while not ends or (ends[-1] - start < seconds and len(ends) != max_batches):
            runner.run(images)
            ends.append(time.perf_counter())
        return ends

    with ThreadPoolExecutor(runner.num_streams) as pool:
        start = time.perf_counter()
        ends = list(pool.map(work, range(runner.num_streams)))
    return sum(size * len(each) / (each[-1] - start) for each in ends)
