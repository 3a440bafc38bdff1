"""TF-slim's network: size, geometry, and that checkpoint and export treat both networks alike."""

from dataclasses import replace

import pytest
import torch
from project import ROOT
from torch import nn

from irv2.checkpoint import Checkpoint
from irv2.images.preprocess import Preprocess
from irv2.model.build import build, initialize
from irv2.model.summary import side_by_side, summarize
from irv2.network_config import NETWORKS, ModelConfig, SlimConfig

NARROW = {"num_classes": 3, "blocks": (1, 2, 2), "width": 0.125}
# name -> (output at 299, convolutions), from the published layout
PUBLISHED = {
    "stem": ((320, 35, 35), 12),
    "blocks_a x10": ((320, 35, 35), 70),
    "reduction_a": ((1088, 17, 17), 4),
    "blocks_b x20": ((1088, 17, 17), 100),
    "reduction_b": ((2080, 8, 8), 7),
    "blocks_c x10": ((2080, 8, 8), 50),
    "head": ((1536, 8, 8), 1),
    "classifier": ((1000,), 0),
}


def checkpoint_of(config) -> Checkpoint:
    torch.manual_seed(0)
    model = build(config)
    return Checkpoint(
        model=config,
        state_dict=model.state_dict(),
        classes=["a", "b", "c"],
        setting="imported",
        preprocess=Preprocess(resize=80, crop=75),
        epoch=0,
        step=0,
    )


def test_the_published_network_has_the_published_size():
    with torch.device("meta"):
        rows = summarize(SlimConfig(), 299)
    assert {row.name: (row.shape, row.num_convolutions) for row in rows} == PUBLISHED
    assert sum(row.num_parameters for row in rows) == 55_843_464  # timm's count
    # timm's table has 13.18 billion multiply-adds.
    assert sum(row.flop for row in rows) / 2 == pytest.approx(13.18e9, rel=0.005)


def test_the_documentation_shows_both_networks_as_they_are():
    table = side_by_side(ModelConfig(), SlimConfig(), 299)
    assert "31,574,440" in table
    assert "55,843,464" in table
    assert table in (ROOT / "docs" / "importing.md").read_text()


def test_only_the_last_block_is_linear_and_each_grid_has_its_scale():
    with torch.device("meta"):
        network = build(SlimConfig())
    scales = [
        [(block.residual_scale, block.linear) for block in blocks]
        for blocks in (network.blocks_a, network.blocks_b, network.blocks_c)
    ]
    expected = [10 * [(0.17, False)], 20 * [(0.1, False)], 9 * [(0.2, False)] + [(1.0, True)]]
    assert scales == expected


def test_initial_values_are_tf_slims():
    """Xavier's uniform distribution, biases 0; batch norm of decay 0.9997 and epsilon 0.001."""
    torch.manual_seed(0)
    network = build(SlimConfig(num_classes=10, blocks=(1, 1, 1), width=0.25))
    initialize(network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            area = layer.weight[0, 0].numel()
            limit = (6 / (area * (layer.weight.shape[0] + layer.weight.shape[1]))) ** 0.5
            assert 0.95 * limit < layer.weight.abs().max() <= limit
            # The variance of as few as 600 numbers; uniform ones have a third of the square.
            assert layer.weight.var().item() == pytest.approx(limit**2 / 3, rel=0.15)
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum) == (1e-3, 0.0003)
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
    assert network.dropout.p == 0.2


@pytest.mark.parametrize("config", [ModelConfig(**NARROW), SlimConfig(**NARROW)])
def test_a_checkpoint_comes_back_as_the_network_it_holds(tmp_path, config):
    saved = checkpoint_of(config)
    saved.save(tmp_path / "a.pt")
    loaded = Checkpoint.load(tmp_path / "a.pt")
    assert loaded.model == config
    assert type(loaded.model) is NETWORKS[config.arch]
    images = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        loaded.build_model()(images), saved.build_model()(images), rtol=0, atol=0
    )


def test_weights_of_one_network_do_not_load_into_the_other():
    swapped = replace(checkpoint_of(ModelConfig(**NARROW)), model=SlimConfig(**NARROW))
    with pytest.raises(RuntimeError):
        swapped.build_model()
