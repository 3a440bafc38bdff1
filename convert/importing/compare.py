"""Whether an imported network answers like the one that it was imported from (`--compare`)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irv2.checkpoint import Checkpoint
from irv2.errors import InputError, ParityError
from irv2.model.paper import Normalized
from irv2.results import margins_of, typical_margin
from irv2.system.progress import DELAY_S, progress
from irv2.system.stop import raise_if_stopped
from irv2.types import FloatArray

LIMIT = 0.01  # of the typical margin: float32 in another order moves logits by a thousandth of it
BATCH_SIZE = 8
EXPECTED = "arrays `inputs` and `logits`, as docs/importing.md shows"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the logits of `n` inputs are apart; `share` is of the typical margin."""

    file: str
    n: int
    same_best: int
    max_abs_logit_diff: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, for --json and the checkpoint."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"the same best class for {self.same_best} of {self.n}; logits differ by "
            f"{self.max_abs_logit_diff:.2g} at most, {self.share:.2g} of the typical margin"
        )


def compare(checkpoint: Checkpoint, path: Path) -> Agreement:
    """Compare the network's logits with those of the framework it comes from, in a `.npz` file.

    `inputs` are uint8 (N, S, S, 3), or float as the network takes them, (N, 3, S, S) or
    (N, S, S, 3). Raises ParityError where logits differ, InputError for another file.
    """
    inputs, expected = _arrays(path)
    if not checkpoint.classes:
        raise InputError(path, "logits of a network without a classifier", "no --compare")
    if expected.shape[1] == len(checkpoint.classes) + 1:
        expected = expected[:, 1:]  # the background's, which was dropped
    if expected.shape[1] != len(checkpoint.classes):
        raise InputError(
            path, f"logits of {expected.shape[1]} classes", f"{len(checkpoint.classes)}"
        )
    found = _logits(checkpoint, inputs, path)
    unit = typical_margin(margins_of(expected))
    difference = float(np.abs(found - expected).max())
    agreement = Agreement(
        file=path.name,
        n=len(expected),
        same_best=int((found.argmax(1) == expected.argmax(1)).sum()),
        max_abs_logit_diff=difference,
        share=difference / unit if unit else np.inf,
    )
    if not agreement.share <= LIMIT:
        raise ParityError(
            path,
            str(agreement),
            f"at most {LIMIT:g} of it",
            "check size, mean and std, and that both took the same inputs in eval mode",
        )
    return agreement


def _arrays(path: Path) -> tuple[Tensor, FloatArray]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            inputs, logits = torch.from_numpy(file["inputs"]), file["logits"].astype(np.float32)
    except Exception as error:  # on damaged archives numpy and zipfile raise anything
        raise_if_stopped()
        raise InputError(path, f"unreadable ({error})", EXPECTED) from error
    if inputs.ndim != 4 or logits.ndim != 2 or not 0 < len(inputs) == len(logits):
        shapes = f"inputs {tuple(inputs.shape)} and logits {logits.shape}"
        raise InputError(path, shapes, "(N, S, S, 3) and (N, classes)")
    if not np.isfinite(logits).all():
        raise InputError(path, "logits that are not finite", "numbers")
    return inputs, logits


def _logits(checkpoint: Checkpoint, inputs: Tensor, path: Path) -> FloatArray:
    network = checkpoint.build_model()
    is_nhwc, crop = inputs.shape[3] == 3, checkpoint.preprocess.crop
    sides = inputs.shape[1:3] if is_nhwc else inputs.shape[2:]
    is_uint8 = inputs.dtype == torch.uint8
    if (
        tuple(sides) != (crop, crop)
        or (not is_nhwc and inputs.shape[1] != 3)
        or (is_uint8 and not is_nhwc)
        or not (is_uint8 or inputs.is_floating_point())
    ):
        found = f"inputs {inputs.dtype} {tuple(inputs.shape)}"
        raise InputError(
            path, found, f"uint8 (N, {crop}, {crop}, 3), or float (N, 3, {crop}, {crop})"
        )
    if is_uint8:
        preprocess = checkpoint.preprocess
        model: torch.nn.Module = Normalized(network, preprocess.mean, preprocess.std)
    else:
        model = network
        inputs = inputs.permute(0, 3, 1, 2) if is_nhwc else inputs
    batches = torch.split(inputs, BATCH_SIZE)
    with torch.inference_mode():
        logits = [
            model(batch if is_uint8 else batch.float().contiguous())
            for batch in progress(batches, f"compare {path.name}", len(batches), "batches", DELAY_S)
        ]
    return torch.cat(logits).numpy()
