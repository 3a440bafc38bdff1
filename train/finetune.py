"""Fine-tuning: the trainer, begun from weights that know other pictures.

The new last layer first, on features that the frozen rest gives once; then the network, or its
last stages. Each phase is a run of its own, so that both resume exactly: the first in OUT/head.
"""

import dataclasses
import logging
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

from irv2.block_names import Stage
from irv2.errors import CheckpointError, UsageError
from irv2.measures.curve import HEAD
from irv2.system.machine import world_size
from irv2.train.settings import BEST
from irv2.train.start import Request, train

logger = logging.getLogger(__name__)

# Options of the second phase that say nothing about the first.
_SECOND_ALONE = (
    "trained", "epochs", "learning_rate", "backbone_lr_factor", "batch_norm", "mixup", "cutmix",
)  # fmt: skip


def finetune(request: Request, stage: Stage, head_epochs: int | None) -> dict[str, Any] | None:
    """Train `stage` of the network of `request.init_from`; return what `train` does.

    `head_epochs` is the length of the first phase if the stage is more than the head: None for the
    recipe's, 0 for no such phase. Raises Irv2Error.
    """
    request = _with(request, trained=stage)
    if world_size() > 1 and (stage == "head" or head_epochs != 0):
        raise UsageError(
            "--train head",
            f"{world_size()} processes",
            "one, for the features of a head",
            "leave out torchrun; or pass --head-epochs 0, with the best.pt of such a run as CKPT",
        )
    if stage == "head":
        _refuse_without_phases(request, head_epochs)
    if stage != "head" and head_epochs != 0:
        logger.info("phase 1 of 2: the last layer alone")
        began_at = time.monotonic()
        head = _train_head(request, head_epochs)
        left = request.time_budget_minutes
        if left is not None:
            left = max(0.0, left - (time.monotonic() - began_at) / 60)
        overrides = {n: v for n, v in request.overrides.items() if n != "feature_crops"}
        request = dataclasses.replace(
            request, init_from=better(head)[0], time_budget_minutes=left, overrides=overrides
        )
        logger.info("phase 2 of 2: --train %s", stage)
        result = train(request)
        compare_phases(head, result)
        return result
    return train(request)


def better(result: dict[str, Any]) -> tuple[Path, float]:
    """Return the best weights that a run left, or their average if that is better, and the error.

    In percent, top 1.
    """
    found = [
        (result[f"{kind}top1_error"], Path(result[file]))
        for file, kind in BEST.items()
        if file in result
    ]
    error, path = min(found, key=itemgetter(0))  # the weights, where both are as good
    return path, error


def compare_phases(head: dict[str, Any], network: dict[str, Any] | None) -> None:
    """Say so where the first phase left better weights than the second, which begins with them."""
    if not network or not network.keys() & BEST.keys():
        return
    path, error = better(head)
    if better(network)[1] > error:
        logger.warning(
            "the last layer alone did better: %s has a top-1 error of %.3f %%", path, error
        )


def _refuse_without_phases(request: Request, head_epochs: int | None) -> None:
    """Raise UsageError for an option about what a head alone has not: two phases, and stages."""
    given = ["head_epochs"] if head_epochs is not None else []
    given += [name for name in ("backbone_lr_factor", "batch_norm") if name in request.overrides]
    for name in given:
        raise UsageError(
            f"--{name.replace('_', '-')}",
            "given with --train head",
            "another stage: here the last layer alone is trained",
            "pass --epochs" if name == "head_epochs" else "leave it out",
        )


def _train_head(request: Request, epochs: int | None) -> dict[str, Any]:
    """Train the last layer in OUT/head and return its best checkpoint and errors."""
    kept = {n: v for n, v in request.overrides.items() if n not in _SECOND_ALONE}
    given = {} if epochs is None else {"epochs": epochs}
    first = dataclasses.replace(
        request,
        out=request.out / HEAD,
        resume=False,
        overrides={**kept, **given, "trained": "head"},
    )
    result = train(first)
    assert result is not None  # there is one process
    if "best" not in result:
        raise CheckpointError(
            first.out / "best.pt",
            "is gone",
            "the weights that the first phase left",
            f"put it back; or remove {first.out}, and the first phase begins again",
        )
    return result


def _with(request: Request, **overrides: Any) -> Request:  # noqa: ANN401 (fields of Recipe)
    return dataclasses.replace(request, overrides={**request.overrides, **overrides})
