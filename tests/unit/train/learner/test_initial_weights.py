"""--init-from: which weights a run begins with, and which checkpoints can't give them."""

import dataclasses
from pathlib import Path

import pytest
import torch

from irv2.checkpoint import Checkpoint
from irv2.errors import CheckpointError
from irv2.images.preprocess import Preprocess
from irv2.model.build import build
from irv2.model.paper import NetworkConfig
from irv2.model.slim import SlimConfig
from irv2.train.learner.initial_weights import fingerprint, initial_model
from irv2.train.settings import SETTINGS

RECIPE = dataclasses.replace(SETTINGS["2"], blocks=(1, 1, 1), width=0.1)
CLASSES = ("cat", "dog", "emu")


def write(path: Path, config: NetworkConfig, classes: tuple[str, ...] = CLASSES) -> Path:
    torch.manual_seed(99)
    Checkpoint(
        model=config,
        state_dict=build(config).state_dict(),
        classes=list(classes),
        preprocess=Preprocess(resize=82, crop=75),
        setting="2",
        epoch=1,
        step=1,
    ).save(path)
    return path


def same_weights(path: Path, classes: tuple[str, ...]) -> set[str]:
    """Names of the weights that a run on `classes` takes over from the checkpoint."""
    weights = Checkpoint.load(path).state_dict
    state = initial_model(RECIPE, classes, path).state_dict()
    return {
        name
        for name, value in state.items()
        if value.shape == weights[name].shape and torch.equal(value, weights[name])
    }


def test_a_checkpoint_of_the_same_classes_gives_every_weight(tmp_path):
    path = write(tmp_path / "best.pt", RECIPE.model_config(3))
    assert same_weights(path, CLASSES) == Checkpoint.load(path).state_dict.keys()


def test_other_classes_get_a_new_last_layer_and_are_told_so(tmp_path, caplog):
    path = write(tmp_path / "best.pt", RECIPE.model_config(3))
    new = Checkpoint.load(path).state_dict.keys() - same_weights(path, ("cat", "dog"))
    assert new == {"classifier.weight", "classifier.bias"}
    assert initial_model(RECIPE, ("cat", "dog"), path).classifier.weight.shape[0] == 2
    assert "trained on 3 classes, but here are 2; the last layer starts from scratch" in caplog.text


def test_a_checkpoint_without_a_classifier_gives_the_rest(tmp_path):
    """As `irv2 import` leaves it where the file had none."""
    whole = Checkpoint.load(write(tmp_path / "whole.pt", RECIPE.model_config(3)))
    headless = {n: t for n, t in whole.state_dict.items() if not n.startswith("classifier.")}
    config = RECIPE.model_config(0)
    dataclasses.replace(whole, model=config, state_dict=headless, classes=[]).save(
        tmp_path / "headless.pt"
    )
    state = initial_model(RECIPE, CLASSES, tmp_path / "headless.pt").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in headless.items())


def test_other_names_of_as_many_classes_keep_the_last_layer_with_a_notice(tmp_path, caplog):
    path = write(tmp_path / "best.pt", RECIPE.model_config(3))
    assert "classifier.weight" in same_weights(path, ("katze", "hund", "emu"))
    assert "its class names differ" in caplog.text


def test_dropout_is_no_weight_and_may_differ(tmp_path):
    path = write(tmp_path / "best.pt", dataclasses.replace(RECIPE.model_config(3), dropout=0.5))
    assert initial_model(RECIPE, CLASSES, path).config.dropout == 0.2


def test_weights_of_tf_slims_network_are_refused_in_one_line(tmp_path):
    path = write(tmp_path / "slim.pt", SlimConfig(num_classes=3, blocks=(1, 1, 1), width=0.1))
    expected = "another network, inception_resnet_v2_slim; expected inception_resnet_v2, the paper"
    with pytest.raises(CheckpointError, match=expected):
        initial_model(RECIPE, CLASSES, path)


def test_another_width_or_depth_is_refused_by_name(tmp_path):
    path = write(
        tmp_path / "best.pt",
        dataclasses.replace(RECIPE, width=0.2, blocks=(2, 1, 1)).model_config(3),
    )
    expected = r"blocks \[2, 1, 1\] there and \[1, 1, 1\] here, width 0.2 there and 0.1 here"
    with pytest.raises(CheckpointError, match=expected):
        initial_model(RECIPE, CLASSES, path)


def test_the_recipe_remembers_the_file_not_its_name(tmp_path):
    one, other = (write(tmp_path / name, RECIPE.model_config(3)) for name in ("a.pt", "b.pt"))
    assert fingerprint(one) == fingerprint(other)
    with pytest.raises(CheckpointError, match="no such file"):
        fingerprint(tmp_path / "c.pt")
