"""Checks that stop a run that goes nowhere: values that are not finite, errors as by guessing."""

import math

import torch
from torch import Tensor

from irv2.errors import Irv2Error
from irv2.train.run.folder import Run
from irv2.train.settings import Recipe


class DivergenceError(Irv2Error):
    """A training run whose loss is no longer finite, or that learns nothing."""


class Guard:
    """Watches a run's totals (4,): loss, images wrong in top 1 and in top 5, images.

    Every `chance_steps` steps it compares the errors since the last comparison with chance; 0:
    never.
    """

    def __init__(self, run: Run, recipe: Recipe, num_classes: int, chance_steps: int) -> None:
        self._run, self._recipe, self._chance_steps = run, recipe, chance_steps
        self._chance = 1 / num_classes
        self.since = torch.zeros(4, dtype=torch.float64)  # totals since the last comparison

    def check_step(self, step: int, totals: Tensor) -> None:
        """Count a step. Raises DivergenceError if the last steps were no better than guessing."""
        self.since = self.since.to(totals.device) + totals
        if not self._chance_steps or step % self._chance_steps:
            return
        _, wrong, _, num = self.since.tolist()
        deviation = math.sqrt(num * self._chance * (1 - self._chance))
        most_by_chance = num * self._chance + 3 * deviation
        if most_by_chance >= num:  # too few images to tell: compare them with the next ones
            return
        self.since = torch.zeros_like(self.since)
        if num - wrong <= most_by_chance:
            raise self._diverged(
                step,
                f"top-1 error {100 * wrong / num:.2f} % of the last {num:.0f} images, as by "
                "guessing",
                f"below {100 * (1 - most_by_chance / num):.2f} %",
            )

    def check_finite(self, step: int, what: str, is_finite: bool) -> None:
        """Raise DivergenceError about `what` unless `is_finite`."""
        if not is_finite:
            raise self._diverged(step, f"{what} not finite", "finite numbers")

    def _diverged(self, step: int, got: str, expected: str) -> DivergenceError:
        last = self._run.last
        begin = f" --init-from {last}" if last.is_file() else ""
        rate = f"--learning-rate {self._recipe.learning_rate / 2:g}"
        return DivergenceError(
            f"step {step}",
            got,
            expected,
            f"the same command with --out NEW{begin} {rate}, or with --warmup-steps",
        )
