"""The names of blocks are those of the networks' weights."""

import pytest

from irv2.block_names import PARTS, block_of, part_of
from irv2.model.build import build
from irv2.network_config import ModelConfig, SlimConfig


@pytest.mark.parametrize("kind", [ModelConfig, SlimConfig])
def test_every_weight_of_a_network_is_its_blocks_and_no_block_is_missing(kind):
    network = build(kind(num_classes=3, blocks=(1, 2, 2), width=0.125))
    blocks = dict(network.named_blocks())
    for name, _ in network.named_parameters():
        block = block_of(f"model.{name}")
        assert name.removeprefix(f"{block}.") in dict(blocks[block].named_parameters())
    assert {*map(part_of, blocks)} == {part for part in PARTS if hasattr(network, part)}


@pytest.mark.parametrize("name", ["pixel_mean", "stem", "conv2d_3.weight", "overhead.weight"])
def test_other_names_have_no_block(name):
    assert block_of(name) is None
