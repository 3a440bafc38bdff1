"""Which parts of a network are trained, and at which rate: freezing, and the optimiser's groups.

A frozen part keeps its weights and its batch-norm statistics: it runs in evaluation mode, and
stores neither gradients nor activations.
"""

from typing import Any

from torch import nn

from irv2.block_names import PARTS, Stage
from irv2.model.build import Network
from irv2.train.learner.batch_norm import GroupBatchNorm2d
from irv2.train.settings import Recipe

# The first part that is trained; those before it in forward order are frozen.
FIRST_PART: dict[Stage, str] = {
    "head": "classifier",
    "blocks_c": "blocks_c",
    "blocks_b": "blocks_b",
    "all": "stem",
}
# How many steps of lower rates lie between a part and the classifier.
DEPTH = {
    "classifier": 0, "head": 1, "blocks_c": 1, "reduction_b": 1, "blocks_b": 2, "reduction_a": 2,
    "blocks_a": 3, "stem": 4,
}  # fmt: skip


class Stages:
    """The parts of `network`, those before the recipe's stage frozen."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        self._network, self._recipe = network, recipe
        parts = [(name, part) for name, part in network.named_children() if name in PARTS]
        first = [name for name, _ in parts].index(FIRST_PART[recipe.trained])
        self._frozen = [part for _, part in parts[:first]]
        self._trained = parts[first:]
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self) -> None:
        """Put the network into training mode, and what is frozen or held into evaluation mode."""
        self._network.train()
        held = [norm for norm in self._network.modules() if isinstance(norm, GroupBatchNorm2d)]
        for module in (*self._frozen, *(held if self._recipe.batch_norm == "held" else ())):
            module.eval()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Group the trained parameters by `rate`, a factor of the recipe's, and weight decay.

        One group where all have the same of both, in the order of the network.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, part in self._trained:
            rate = self._recipe.backbone_lr_factor ** (DEPTH[name] / max(DEPTH.values()))
            for parameter in part.parameters():
                decays = self._recipe.decay == "all" or parameter.ndim > 1
                key = rate, self._recipe.weight_decay if decays else 0.0
                groups.setdefault(key, []).append(parameter)
        return [
            {"params": parameters, "rate": rate, "weight_decay": weight_decay}
            for (rate, weight_decay), parameters in groups.items()
        ]
