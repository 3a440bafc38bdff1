"""A state_dict of our own networks is recognised by its names."""

from pathlib import Path

import pytest
import torch
from imported import imported, refused

from irv2.convert.importing.own import read_own
from irv2.convert.importing.weights import SLIM_PREPROCESS
from irv2.images.preprocess import Preprocess
from irv2.model.build import build
from irv2.model.paper import Normalized
from irv2.network_config import ModelConfig, NetworkConfig, SlimConfig

PATH = Path("a.pth")
SMALL = [
    ModelConfig(blocks=(1, 1, 1), num_classes=3, width=0.125),
    ModelConfig(blocks=(1, 2, 1), num_classes=3),
    SlimConfig(blocks=(1, 2, 1), num_classes=3),
    SlimConfig(blocks=(1, 1, 2), num_classes=3, width=0.25),
]


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_the_network_is_told_by_its_tensors(config: NetworkConfig):
    with torch.device("meta"):
        state = Normalized(build(config), (0, 0, 0), (1, 1, 1)).state_dict()
    weights = read_own(state, PATH)
    assert weights.config == config
    expected = SLIM_PREPROCESS if config.arch.endswith("slim") else Preprocess()
    assert weights.preprocess == expected


def test_other_networks_are_not_ours():
    assert read_own({"conv2d_1a.conv.weight": torch.ones(1)}, PATH) is None


def test_half_precision_is_read_and_what_does_not_fit_is_listed(tmp_path):
    config = SMALL[0]
    state = build(config).half().state_dict()
    torch.save(state, tmp_path / "own.pth")
    weights, found = imported(tmp_path / "own.pth")
    assert weights.notes == ("residuals are taken to be scaled by 0.1",)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(found[name], state[name].float()) for name in weights.names)
    del state["classifier.bias"]
    torch.save(state, tmp_path / "own.pth")
    assert "1 missing: classifier.bias;" in refused(lambda: imported(tmp_path / "own.pth"))


def test_without_its_classifier_it_has_no_classes(tmp_path):
    state = build(SMALL[0]).state_dict()
    torch.save({n: t for n, t in state.items() if "classifier" not in n}, tmp_path / "own.pth")
    weights, found = imported(tmp_path / "own.pth")
    assert weights.config.num_classes == 0
    assert found.keys() == {name for name in state if "classifier" not in name}
