"""The network a run begins with: fresh, or the weights of another checkpoint (`--init-from`)."""

import logging
from pathlib import Path

import torch

from irv2.checkpoint import Checkpoint
from irv2.errors import CheckpointError
from irv2.model.paper import InceptionResNetV2, initialize
from irv2.system.files import file_sha256
from irv2.train.settings import Recipe

logger = logging.getLogger(__name__)


def fingerprint(path: Path) -> str:
    """Return the file's hex sha256, which becomes part of the recipe. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(path, "no such file", "a checkpoint to begin with")
    return file_sha256(path)


def initial_model(
    recipe: Recipe, classes: tuple[str, ...], init_from: Path | None
) -> InceptionResNetV2:
    """Build the recipe's network for these classes, with the weights of `init_from` if given.

    A checkpoint with another number of classes gives all but the last layer. Raises CheckpointError
    for another architecture.
    """
    torch.manual_seed(recipe.seed)
    model = InceptionResNetV2(recipe.model_config(len(classes)))
    initialize(model)
    if init_from is not None:
        _load(model, Checkpoint.load(init_from), init_from, classes)
    return model


def _load(
    model: InceptionResNetV2, checkpoint: Checkpoint, path: Path, classes: tuple[str, ...]
) -> None:
    if checkpoint.model.arch != model.config.arch:
        raise CheckpointError(
            path,
            f"another network, {checkpoint.model.arch}",
            f"{model.config.arch}, the paper's",
            "begin with a checkpoint of irv2-train or the original's imported .t7",
        )
    mine, theirs = model.config.to_json(), checkpoint.model.to_json()
    differing = [
        f"{name} {theirs[name]} there and {mine[name]} here"
        for name in mine.keys() - {"num_classes", "dropout"}  # these shape no other layer
        if mine[name] != theirs[name]
    ]
    if differing:
        raise CheckpointError(
            path,
            f"another architecture: {', '.join(sorted(differing))}",
            "the same except for the classes",
            "pass its --width, --blocks and --residual-scale",
        )
    weights = dict(checkpoint.state_dict)
    if len(checkpoint.classes) != len(classes):
        weights = {
            name: value for name, value in weights.items() if not name.startswith("classifier.")
        }
        logger.warning(
            "%s: trained on %d classes, but here are %d; the last layer starts from scratch",
            path,
            len(checkpoint.classes),
            len(classes),
        )
    elif checkpoint.classes != list(classes):
        logger.warning("%s: its class names differ; the last layer is kept as it is", path)
    model.load_state_dict(weights, strict=False)
