"""The network a run begins with: fresh, or the weights of another checkpoint (`--init-from`)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irv2.checkpoint import Checkpoint
from irv2.data.imagenet import names_by_synset
from irv2.errors import CheckpointError
from irv2.model.build import Network, build, initialize
from irv2.network_config import ModelConfig, NetworkConfig
from irv2.system.text import one_line, shortened
from irv2.train.settings import Recipe

logger = logging.getLogger(__name__)

NUM_LISTED = 5  # classes that a log line names
SHAPES_NO_LAYER = {"num_classes", "dropout"}  # but the last, which is made anew


def inherited(path: Path) -> dict[str, Any]:
    """Return the values of INHERITED in a checkpoint. Raises CheckpointError."""
    checkpoint, sha256 = Checkpoint.load_with_sha256(path)
    network, images = checkpoint.model, checkpoint.preprocess
    return {
        "init_sha256": sha256,
        "arch": network.arch,
        "blocks": network.blocks,
        "width": network.width,
        "residual_scale": network.residual_scale if isinstance(network, ModelConfig) else None,
        "resize": images.resize,
        "image_size": images.crop,
        "resampling": images.resampling,
        "mean": images.mean,
        "std": images.std,
        "orientation": images.orientation,
    }


def require_same_network(mine: NetworkConfig, theirs: NetworkConfig, path: Path) -> None:
    """Raise CheckpointError about `path` if its network differs in more than its classes."""
    if theirs.arch != mine.arch:
        raise CheckpointError(
            path, f"another network, {theirs.arch}", mine.arch, "leave out --arch: the file decides"
        )
    here, there = mine.to_json(), theirs.to_json()
    differing = [
        f"{name} {there[name]} there and {here[name]} here"
        for name in sorted(here.keys() - SHAPES_NO_LAYER)
        if here[name] != there[name]
    ]
    if differing:
        raise CheckpointError(
            path,
            f"another architecture: {', '.join(differing)}",
            "the same except for the classes",
            "leave out --width, --blocks and --residual-scale: the file decides",
        )


def initial_model(recipe: Recipe, classes: tuple[str, ...], init_from: Path | None) -> Network:
    """Build the recipe's network for these classes, with the weights of `init_from` if given.

    Of the last layer, a checkpoint gives the rows of the classes that it knows by name. Raises
    CheckpointError for another architecture.
    """
    torch.manual_seed(recipe.seed)
    model = build(recipe.model_config(len(classes)))
    initialize(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = recipe.bn_momentum
    if init_from is not None:
        checkpoint = Checkpoint.load(init_from)
        require_same_network(model.config, checkpoint.model, init_from)
        _load(model, checkpoint, classes, init_from)
    return model


@torch.no_grad()
def _load(model: Network, checkpoint: Checkpoint, classes: tuple[str, ...], path: Path) -> None:
    weights = dict(checkpoint.state_dict)
    row_of = {_name(known): row for row, known in enumerate(checkpoint.classes)}
    kept = {row: row_of[_name(name)] for row, name in enumerate(classes) if _name(name) in row_of}
    last: dict[str, nn.Parameter] = dict(model.classifier.named_parameters(prefix="classifier"))
    for name, parameter in last.items():
        if kept:
            parameter[list(kept)] = weights[name][list(kept.values())]
        weights[name] = parameter
    model.load_state_dict(weights)
    if checkpoint.classes != list(classes):
        logger.info("%s: %s", path, _told(kept, checkpoint.classes, classes))


def _name(label: str) -> str:
    """Return a class's name; ImageNet's folders are named by synsets."""
    return names_by_synset().get(label, label)


def _told(kept: dict[int, int], theirs: Sequence[str], classes: Sequence[str]) -> str:
    """Say which rows of the last layer are kept."""
    scratch = "the last layer starts from scratch"
    if not theirs:
        return f"it has no classifier; {scratch}"
    if not kept:
        return f"none of its {len(theirs)} classes ({_listed(theirs)}) is one of these; {scratch}"
    rows = f"the last layer keeps the rows of {len(kept)} of its {len(theirs)} classes, by name"
    new = [name for row, name in enumerate(classes) if row not in kept]
    if not new:
        return rows
    return (
        f"{rows} ({_listed([classes[row] for row in kept])}); {len(new)} "
        f"start{'s' * (len(new) == 1)} from scratch ({_listed(new)})"
    )


def _listed(names: Sequence[str]) -> str:
    return shortened([one_line(name) for name in names], NUM_LISTED)
