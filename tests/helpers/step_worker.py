"""A few steps on fixed images, alone or under torchrun.

`step_worker.py OUT MICRO_BATCHES ARCH RECIPE`, the last in JSON: fields that differ from setting 2.
With `class_weights` balanced, three classes have weights in the loss.

For each of the MICRO_BATCHES, as "0,32", leaves in OUT the first process's weights and running
statistics after one step in float32 and after five in float64, of which the last has a short batch:
47 images, as 24 and 23. Dropout is off. Fails where threads of the process group outlive it.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch

from irv2.model.build import build, initialize
from irv2.network_config import FULL_SIZE
from irv2.train.data.loader import Batch, batch_for_rank
from irv2.train.learner.step import Computation, Learner
from irv2.train.processes import Processes, joined
from irv2.train.settings import SETTINGS

RECIPE = dataclasses.replace(  # 64 images as 2 x 32
    SETTINGS["2"], image_size=75, resize=75, **json.loads(sys.argv[4])
)


def batch_of(indices: list[int], dtype: torch.dtype) -> Batch:
    """Images that depend on their index alone."""
    generators = [torch.Generator().manual_seed(i) for i in indices]
    images = [
        torch.randint(0, 256, (75, 75, 3), generator=g, dtype=torch.uint8) for g in generators
    ]
    matrix = torch.cat([torch.eye(3, dtype=dtype) / 64, torch.full((3, 1), -2, dtype=dtype)], 1)
    return Batch(
        torch.stack(images) if images else torch.empty(0),
        matrix.expand(len(indices), 3, 4),
        torch.tensor([i % 2 == 0 for i in indices]),
        torch.tensor([i % 3 for i in indices]),
    )


def train(
    arch: str,
    dtype: torch.dtype,
    num_steps: int,
    micro_batch: int | None,
    processes: Processes,
    class_weights: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    small = {"num_classes": 3, "blocks": (1, 1, 1), "width": 0.1, "dropout": 0.0}
    model = build(dataclasses.replace(FULL_SIZE[arch], **small))
    initialize(model)
    computation = Computation(micro_batch=micro_batch)
    learner = Learner(model.to(dtype), RECIPE, computation, processes, class_weights)
    for step in range(1, num_steps + 1):
        indices = list(range(100 * step, 100 * step + (47 if step == num_steps > 1 else 64)))
        mine = batch_for_rank(indices, RECIPE, processes.rank, processes.size)
        learner.step(step, batch_of(mine, dtype), len(indices))
    return learner.model.state_dict()


if __name__ == "__main__":
    out, micro_batches, arch = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    weights = torch.tensor([0.3, 1.0, 5.0]) if RECIPE.class_weights == "balanced" else None
    with joined("cpu") as processes:
        for name in micro_batches:
            how = (int(name) or None, processes, weights)
            states = {
                "float32": train(arch, torch.float32, 1, *how),
                "float64": train(arch, torch.float64, 5, *how),
            }
            if processes.is_first:
                torch.save(states, out / f"{name}.pt")
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), "an interpreter that ends now may abort"
