"""--init-from: which weights a run begins with, and which checkpoints can't give them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from irv2.checkpoint import Checkpoint
from irv2.errors import CheckpointError
from irv2.images.preprocess import Preprocess
from irv2.model.build import build
from irv2.network_config import NETWORKS, NetworkConfig, SlimConfig
from irv2.train.learner.initial_weights import inherited, initial_model
from irv2.train.settings import INHERITED, Recipe, setting_for

NARROW = {"blocks": (1, 1, 1), "width": 0.1}
RECIPE = dataclasses.replace(setting_for("2", "inception_resnet_v2"), **NARROW)
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


def initial(classes: tuple[str, ...], path: Path, recipe: Recipe = RECIPE) -> dict[str, Tensor]:
    return initial_model(recipe, classes, path).state_dict()


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_checkpoint_of_the_same_classes_gives_every_weight(tmp_path, caplog, arch):
    caplog.set_level("INFO")
    recipe = dataclasses.replace(setting_for("2", arch), **NARROW)
    path = write(tmp_path / "best.pt", recipe.model_config(3))
    state, expected = initial(CLASSES, path, recipe), Checkpoint.load(path).state_dict
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert not caplog.text


@pytest.mark.parametrize("arch", NETWORKS)
def test_batch_norm_takes_the_recipes_momentum(arch):
    recipe = dataclasses.replace(setting_for("2", arch), **NARROW)
    momenta = {"inception_resnet_v2": 0.1, "inception_resnet_v2_slim": 0.0003}

    def found(recipe: Recipe) -> set[float]:
        modules = initial_model(recipe, CLASSES, None).modules()
        return {norm.momentum for norm in modules if isinstance(norm, nn.BatchNorm2d)}

    assert found(recipe) == {momenta[arch]}
    assert found(dataclasses.replace(recipe, bn_momentum=0.05)) == {0.05}


@pytest.mark.parametrize(
    ("classes", "rows", "line"),
    [
        (("emu", "cat", "dog"), [2, 0, 1], "keeps the rows of 3 of its 3 classes, by name"),
        (("dog", "cat"), [1, 0], "keeps the rows of 2 of its 3 classes, by name"),
        (
            ("ant", "cat", "emu", "fox"),
            [None, 0, 2, None],
            "keeps the rows of 2 of its 3 classes, by name (cat, emu); "
            "2 start from scratch (ant, fox)",
        ),
        (
            ("ant", "emu"),
            [None, 2],
            "keeps the rows of 1 of its 3 classes, by name (emu); 1 starts from scratch (ant)",
        ),
        (
            ("katze", "hund", "igel"),
            [None, None, None],
            "none of its 3 classes (cat, dog, emu) is one of these; "
            "the last layer starts from scratch",
        ),
    ],
    ids=["another order", "fewer", "some", "one", "none"],
)
def test_classes_keep_their_rows_of_the_last_layer_by_name(tmp_path, caplog, classes, rows, line):
    caplog.set_level("INFO")
    path = write(tmp_path / "best.pt", RECIPE.model_config(3))
    weights = Checkpoint.load(path).state_dict
    fresh = initial_model(RECIPE, classes, None).state_dict()
    state = initial(classes, path)
    for name in ("classifier.weight", "classifier.bias"):
        for mine, theirs in enumerate(rows):
            expected = fresh[name][mine] if theirs is None else weights[name][theirs]
            assert torch.equal(state[name][mine], expected)
    others = weights.keys() - {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(state[name], weights[name]) for name in others)
    assert [record.message for record in caplog.records] == [
        f"{path}: the last layer {line}" if line.startswith("keeps") else f"{path}: {line}"
    ]


def test_folders_named_by_synset_are_imagenets_classes(tmp_path):
    path = write(tmp_path / "best.pt", RECIPE.model_config(2), ("goldfish", "tench"))
    weight = initial(("n01440764", "n01443537"), path)["classifier.weight"]
    assert torch.equal(weight, Checkpoint.load(path).state_dict["classifier.weight"].flip(0))


def test_of_many_classes_the_line_names_a_few(tmp_path, caplog):
    caplog.set_level("INFO")
    names = tuple(f"class {i}" for i in range(8))
    path = write(tmp_path / "best.pt", RECIPE.model_config(8), names)
    initial((*names, "ant"), path)
    assert "(class 0, class 1, class 2, class 3, class 4 and 3 more); 1 starts" in caplog.text


def test_a_checkpoint_without_a_classifier_gives_the_rest(tmp_path, caplog):
    """As `irv2 import` leaves it where the file had none."""
    caplog.set_level("INFO")
    whole = Checkpoint.load(write(tmp_path / "whole.pt", RECIPE.model_config(3)))
    headless = {n: t for n, t in whole.state_dict.items() if not n.startswith("classifier.")}
    config = RECIPE.model_config(0)
    dataclasses.replace(whole, model=config, state_dict=headless, classes=[]).save(
        tmp_path / "headless.pt"
    )
    state = initial(CLASSES, tmp_path / "headless.pt")
    assert all(torch.equal(state[name], tensor) for name, tensor in headless.items())
    assert "it has no classifier; the last layer starts from scratch" in caplog.text


def test_dropout_is_no_weight_and_may_differ(tmp_path):
    path = write(tmp_path / "best.pt", dataclasses.replace(RECIPE.model_config(3), dropout=0.5))
    assert initial_model(RECIPE, CLASSES, path).config.dropout == 0.2


def test_weights_of_the_other_network_are_refused_in_one_line(tmp_path):
    path = write(tmp_path / "slim.pt", SlimConfig(num_classes=3, **NARROW))
    expected = "another network, inception_resnet_v2_slim; expected inception_resnet_v2; leave out"
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
    assert inherited(one) == inherited(other)
    assert tuple(inherited(one)) == INHERITED
    with pytest.raises(CheckpointError, match="no such file"):
        inherited(tmp_path / "c.pt")
