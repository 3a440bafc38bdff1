"""TF-slim's weights under the names that timm and Cadene gave them (`.pth`, `.safetensors`).

Both name the layers alike; timm's last one is `classif`, Cadene's `last_linear`, and people who
train their own name it as they like.
"""

import re
from pathlib import Path

from torch import Tensor

from irv2.convert.importing.weights import (
    SLIM_PREPROCESS,
    PublishedWeights,
    expected_state,
    is_counter,
)
from irv2.convert.importing.wrappings import head_of, unwrapped
from irv2.errors import CheckpointError
from irv2.network_config import SlimConfig

NUM_FEATURES = 1536  # that the classifier takes
FIRST_TENSOR = "conv2d_1a.conv.weight"
# Our names to the published ones, applied in this order.
RULES = [
    (r"^stem\.0\.", "conv2d_1a."),
    (r"^stem\.1\.", "conv2d_2a."),
    (r"^stem\.2\.", "conv2d_2b."),
    (r"^stem\.4\.", "conv2d_3b."),
    (r"^stem\.5\.", "conv2d_4a."),
    (r"^stem\.7\.", "mixed_5b."),
    (r"^blocks_a\.", "repeat."),
    (r"^reduction_a\.", "mixed_6a."),
    (r"^blocks_b\.", "repeat_1."),
    (r"^reduction_b\.", "mixed_7a."),
    (r"^blocks_c\.9\.", "block8."),
    (r"^blocks_c\.", "repeat_2."),
    (r"^head\.", "conv2d_7b."),
    (r"\b(?:branches\.)+(\d)\.", r"branch\1."),
    (r"\.project\.0\.", ".conv2d."),
    (r"\.0\.weight$", ".conv.weight"),
    (r"\.1\.(\w+)$", r".bn.\1"),
]


def read_slim(tensors: dict[str, Tensor], path: Path) -> PublishedWeights:
    """timm's or Cadene's tensors; raises CheckpointError where they are another network's."""
    found = unwrapped(tensors, FIRST_TENSOR, path)
    if found is None:
        some = ", ".join(list(tensors)[:3]) or "none"
        raise CheckpointError(
            path,
            f"tensors of another network ({some}, ...)",
            f"Inception-ResNet-v2 as timm or Cadene name it ({FIRST_TENSOR}, ...)",
        )
    kind = "Cadene weights" if "last_linear.weight" in found else "timm weights"
    last = head_of(found, NUM_FEATURES) or "classif"
    classifier = found.get(f"{last}.weight")
    config = SlimConfig(
        num_classes=1000 if classifier is None or not classifier.ndim else len(classifier)
    )
    names = {
        name: published_name(name).replace("classifier.", f"{last}.")
        for name in expected_state(config)
        if not is_counter(name)
    }
    return PublishedWeights(
        kind=kind, config=config, preprocess=SLIM_PREPROCESS, tensors=found, names=names
    )


def published_name(name: str) -> str:
    """timm's and Cadene's name of one of our tensors (but for the classifier's)."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name
