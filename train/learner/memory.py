"""Memory of a training step: measuring it, and reducing it.

Source: the original's shareGradInput, which shared gradient buffers; here the activations inside a
block are recomputed when the backward pass needs them (Chen et al., arXiv:1604.06174).
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from irv2.model.paper import InceptionResNet
from irv2.train.learner.batch_norm import frozen_statistics

STATUS = Path("/proc/self/status")


def checkpoint_activations(model: InceptionResNet) -> None:
    """Store only the outputs of the stem's parts and of each block, and recompute the rest.

    Results are the same bit for bit: nothing in a block is random, and the second pass leaves the
    running statistics unchanged. Names in the state_dict stay, since only `forward` is replaced.
    """
    for _, block in model.named_blocks():
        if block is not model.classifier:
            block.forward = partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=partial(_contexts, block),
            )


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first pass and of the second."""
    return nullcontext(), frozen_statistics(block)


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: torch's on the GPU, or this process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # getrusage also counts what the process held before it became this program.
    [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 2**10  # KiB
