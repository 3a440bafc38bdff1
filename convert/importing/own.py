"""A state_dict of irv2's own networks, as `torch.save(model.state_dict())` leaves it.

It lacks what a checkpoint holds besides: the preprocessing is taken to be the network's published
one, and the paper's network to scale its residuals by 0.1.
"""

from pathlib import Path

from torch import Tensor

from irv2.block_names import RESIDUAL
from irv2.convert.importing.weights import (
    SLIM_PREPROCESS,
    PublishedWeights,
    expected_state,
    is_counter,
)
from irv2.convert.importing.wrappings import unwrapped
from irv2.images.preprocess import Preprocess
from irv2.network_config import ModelConfig, NetworkConfig, SlimConfig

FIRST_TENSOR = "stem.0.0.weight"
ONLY_SLIM = "head.0.weight"
# A wide convolution of each network, and its channels at full width.
WIDE: dict[type[NetworkConfig], tuple[str, int]] = {
    ModelConfig: ("reduction_a.branches.1.0.weight", 384),
    SlimConfig: (ONLY_SLIM, 1536),
}


def read_own(tensors: dict[str, Tensor], path: Path) -> PublishedWeights | None:
    """The weights if the tensors bear our names, else None; raises CheckpointError."""
    own = unwrapped(tensors, FIRST_TENSOR, path)
    if own is None:
        return None
    num_a, num_b, num_c = (
        len({name.split(".")[1] for name in own if name.startswith(f"{part}.")})
        for part in RESIDUAL
    )
    classifier = own.get("classifier.weight")
    is_slim = ONLY_SLIM in own
    kind: type[NetworkConfig] = SlimConfig if is_slim else ModelConfig
    wide, channels = WIDE[kind]
    width = len(own[wide]) / channels if wide in own and own[wide].ndim else 1.0
    config = kind(
        blocks=(num_a, num_b, num_c),
        width=width,
        num_classes=1000 if classifier is None or not classifier.ndim else len(classifier),
    )
    return PublishedWeights(
        kind="irv2's own state_dict",
        config=config,
        preprocess=SLIM_PREPROCESS if is_slim else Preprocess(),
        tensors=own,
        names={name: name for name in expected_state(config) if not is_counter(name)},
        notes=() if is_slim else ("residuals are taken to be scaled by 0.1",),
    )
