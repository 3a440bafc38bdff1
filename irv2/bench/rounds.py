"""Honest timing: one benchmark at a time, cases in turn, paired ratios, and an A/A test.

Machines drift while they are measured, so two figures can be compared only if taken side by side.
Every round runs all cases, in alternating order; a ratio is the median over the rounds, with
a bootstrapped interval. A benchmark in which a case differs from itself (A/A) is void.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from irv2.errors import UsageError
from irv2.system.cache import cache_folder
from irv2.system.files import try_lock
from irv2.system.machine import num_cores, processor
from irv2.system.progress import Progress
from irv2.types import FloatArray

RESAMPLES = 2000
AA_SUFFIX = " again"


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median over rounds of one case's rate divided by another's, with its 95 % limits."""

    value: float
    lower: float
    upper: float

    def to_json(self) -> dict[str, float]:
        """Return plain values, rounded to what such a measurement can resolve."""
        return {
            "ratio": round(self.value, 3),
            "lower_95": round(self.lower, 3),
            "upper_95": round(self.upper, 3),
        }


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rates of each case in units per second, one per round."""

    rates: dict[str, list[float]]

    def median(self, case: str) -> float:
        """Return the median rate of a case."""
        return float(np.median(self.rates[case]))

    def ratio(self, case: str, base: str) -> Ratio:
        """Divide the rate of `case` by that of `base`, paired by round."""
        pairs: FloatArray = np.array(self.rates[case]) / np.array(self.rates[base])
        draws = np.random.default_rng(0).choice(pairs, (RESAMPLES, len(pairs)))
        lower, upper = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
        return Ratio(float(np.median(pairs)), float(lower), float(upper))

    def aa(self, case: str) -> Ratio:
        """Divide the rate of the case's repetition by its own; see `run_rounds`."""
        return self.ratio(case + AA_SUFFIX, case)

    def is_void(self, case: str) -> bool:
        """Whether the A/A test failed: the case seemed to differ from itself by more than 2 %."""
        aa = self.aa(case)
        return not (aa.lower <= 1 <= aa.upper or abs(aa.value - 1) < 0.02)


def run_rounds(
    cases: Mapping[str, Callable[[], float]], num_rounds: int, *, aa: str, title: str
) -> Rounds:
    """Run every case once per round, and the case `aa` twice; each returns its units per second.

    The order is reversed every round, so that drift falls on both sides of a pair.
    """
    order = [*cases, aa + AA_SUFFIX]
    rates: dict[str, list[float]] = {name: [] for name in order}
    with Progress(title, num_rounds * len(order), "runs") as bar:
        for _ in range(num_rounds):
            for name in order:
                rates[name].append(cases[name.removesuffix(AA_SUFFIX)]())
                bar.advance(1)
            order.reverse()
    return Rounds(rates)


def rate(work: Callable[[], int], seconds: float) -> float:
    """Call `work`, which returns how many units it did, for `seconds`; return units per second."""
    started = time.perf_counter()
    done = 0
    while (elapsed := time.perf_counter() - started) < seconds or not done:
        done += work()
    return done / elapsed


@contextmanager
def machine_lock() -> Iterator[None]:
    """Lock out this user's other benchmarks; raises UsageError if one is running."""
    path = cache_folder() / "bench.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if not try_lock(file):
            raise UsageError(
                "irv2 bench", "another benchmark is running", "one at a time", "wait for it to end"
            )
        yield


def machine() -> dict[str, Any]:
    """Describe the machine that the figures were taken on."""
    return {
        "cores": num_cores(),
        "processor": processor(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }
