"""Memory saved by `--checkpoint-activations`: the peak of training steps with and without it.

Each case is measured in its own process, since a peak never falls again.
"""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from irv2.model import inception_resnet_v2
from irv2.train.data.loader import Batch
from irv2.train.learner.memory import peak_memory_mib
from irv2.train.learner.step import Computation, Learner
from irv2.train.processes import Processes
from irv2.train.settings import Recipe

NUM_CLASSES = 1000
NUM_STEPS = 2  # the first allocates momentum


def measure_memory(recipe: Recipe, device: str, micro_batch: int | None) -> dict[str, Any]:
    """Return the peak MiB of bf16 steps in both cases, and the factor saved.

    `ratio_of_steps` leaves out what a process holds before its first step, the network included.
    """
    recipe = dataclasses.replace(recipe, precision="bf16")
    computation = Computation(device=device, micro_batch=micro_batch)
    computation.check(recipe, Processes())
    again = dataclasses.replace(computation, checkpoint_activations=True)
    before, kept = _in_a_process(recipe, computation)
    _, computed_again = _in_a_process(recipe, again)
    return {
        "compared": {
            "batch_size": recipe.batch_size,
            "micro_batch": micro_batch,
            "image_size": recipe.image_size,
            "width": recipe.width,
            "device": device,
        },
        "peak_mib": {
            "before a step": round(before),
            "activations kept": round(kept),
            "activations computed again": round(computed_again),
        },
        "ratio": round(kept / computed_again, 3),
        "ratio_of_steps": round((kept - before) / (computed_again - before), 3),
    }


def _in_a_process(recipe: Recipe, computation: Computation) -> tuple[float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peaks_mib, recipe, computation).result()


def peaks_mib(recipe: Recipe, computation: Computation) -> tuple[float, float]:
    """Return this process's peak memory in MiB before the first step and after the last."""
    device = torch.device(computation.device)
    model = inception_resnet_v2(NUM_CLASSES, recipe.blocks, recipe.width).train()
    learner = Learner(model, recipe, computation, Processes())
    batch = random_batch(recipe)
    before = peak_memory_mib(device)
    for step in range(NUM_STEPS):
        learner.step(step + 1, batch, recipe.batch_size)
    return before, peak_memory_mib(device)


def random_batch(recipe: Recipe) -> Batch:
    """Make a full batch of noise."""
    num, side = recipe.batch_size, recipe.image_size
    return Batch(
        torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8),
        (torch.eye(3, 4) / 64).expand(num, 3, 4),
        torch.arange(num) % 2 == 0,
        torch.arange(num) % NUM_CLASSES,
    )


def memory_table(report: dict[str, Any]) -> str:
    """Format the report of `measure_memory`, for people."""
    lines = [f"{name:28} {mib:8} MiB" for name, mib in report["peak_mib"].items()]
    lines.append(f"ratio: {report['ratio']}; of the steps alone: {report['ratio_of_steps']}")
    return "\n".join(lines)
