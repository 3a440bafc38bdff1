"""What timm says beside and inside its files is taken over, or refused."""

import argparse
import json
from pathlib import Path

import pytest
from imported import refused

from irv2.convert.importing.statements import settle
from irv2.convert.importing.timm_files import described
from irv2.convert.importing.weights import SLIM_PREPROCESS, PublishedWeights
from irv2.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from irv2.network_config import SlimConfig

# As timm 1.0 writes it beside `model.safetensors`, but for the model's own numbers.
PRETRAINED = {
    "tag": "mine",
    "custom_load": False,
    "input_size": [3, 224, 224],
    "fixed_input_size": False,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
    "num_classes": 3,
    "pool_size": [8, 8],
    "first_conv": "conv2d_1a.conv",
    "classifier": "classif",
}
CONFIG = {
    "architecture": "inception_resnet_v2",
    "num_classes": 3,
    "num_features": 1536,
    "global_pool": "avg",
    "label_names": ["ant", "bee", "cat"],
    "pretrained_cfg": PRETRAINED,
}
ARGS = {  # of its train.py; most that it was not given are None
    "model": "inception_resnet_v2.tf_in1k",
    "num_classes": 3,
    "gp": None,
    "img_size": None,
    "input_size": None,
    "crop_pct": None,
    "mean": None,
    "std": None,
    "interpolation": "",
    "model_kwargs": {},
}
WEIGHTS = PublishedWeights(
    kind="timm weights",
    config=SlimConfig(num_classes=3),
    preprocess=SLIM_PREPROCESS,
    tensors={},
    names={},
)


def described_by(folder: Path, config: object = None, **args: object) -> PublishedWeights:
    """The weights beside this config.json, with these args of a training where there are any."""
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "config.json").write_text(text)
    namespace = argparse.Namespace(**{**ARGS, **args}) if args else None
    return described(WEIGHTS, namespace, folder / "model.safetensors")


def preprocess_of(weights: PublishedWeights):
    return settle(weights.preprocess, weights.statements, {}, Path("a"))


def test_images_and_classes_are_as_config_json_says(tmp_path):
    weights = described_by(tmp_path, CONFIG)
    preprocess, sources = preprocess_of(weights)
    assert (preprocess.resize, preprocess.crop) == (256, 224)
    assert (preprocess.mean, preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert preprocess.resampling == "pillow-bicubic"
    assert set(sources.values()) == {"config.json"}
    assert (weights.classes, weights.classes_from) == (("ant", "bee", "cat"), "config.json")


def test_the_older_form_of_config_json_is_read(tmp_path):
    older = PRETRAINED | {"architecture": "inception_resnet_v2", "num_features": 1536}
    assert preprocess_of(described_by(tmp_path, older))[0].crop == 224


def test_names_may_be_given_by_their_numbers(tmp_path):
    names = {"0": "ant", "1": "bee", "2": "cat"}
    weights = described_by(tmp_path, CONFIG | {"label_names": names})
    assert weights.classes == ("ant", "bee", "cat")


def test_a_training_says_how_its_images_were_prepared(tmp_path):
    weights = described_by(tmp_path, mean=[0.4], std=(0.2, 0.3, 0.4), img_size=331, crop_pct=1.0)
    preprocess, sources = preprocess_of(weights)
    assert (preprocess.resize, preprocess.crop) == (331, 331)
    assert (preprocess.mean, preprocess.std) == ((0.4,) * 3, (0.2, 0.3, 0.4))
    assert sources["mean"] == "args in the file"
    assert preprocess_of(described_by(tmp_path, gp="avg"))[0] == SLIM_PREPROCESS


def test_a_config_json_of_another_program_is_named_as_not_used(tmp_path):
    weights = described_by(tmp_path, {"recipe": {}})
    assert weights.statements == ()
    assert weights.notes == (f"{tmp_path / 'config.json'} is not timm's and was not used",)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"architecture": "resnet50"}, "architecture resnet50; expected inception_resnet_v2"),
        ({"global_pool": "max"}, "global_pool max; expected avg"),
        ({"num_classes": 5}, "num_classes 5; expected 3, as in the weights"),
        ({"label_names": ["ant", "bee"]}, "2 label_names; expected 3 different names"),
        ({"label_names": ["ant", "bee", "bee"]}, "3 label_names; expected 3 different names"),
        ({"label_names": "ant"}, "label_names; expected 3 different names"),
        ({"problem_type": "multi_label_classification"}, "problem_type multi_label"),
        ({"model_args": {"in_chans": 1}}, "in_chans 1; expected 3"),
        ({"model_args": {"act_layer": "silu"}}, "built with act_layer silu; expected timm's"),
        ({"pretrained_cfg": [1]}, "pretrained_cfg or model_args is no object"),
        ({"input_size": [3, 224, 256]}, "input_size [3, 224, 256]; expected 3 channels of a sq"),
        ({"input_size": [1, 224, 224]}, "input_size [1, 224, 224]; expected 3 channels of a sq"),
        ({"mean": [0.5, 0.5]}, "mean [0.5, 0.5]; expected 3 numbers"),
        ({"std": [0.5, 0.5, 0]}, "std [0.5, 0.5, 0]; expected 3 numbers"),
        ({"crop_pct": "most"}, "crop_pct most; expected a number above 0"),
    ],
)
def test_what_is_not_the_networks_is_refused(tmp_path, change, expected):
    line = refused(lambda: described_by(tmp_path, CONFIG | change))
    assert line.startswith(f"{tmp_path / 'config.json'}: ")
    assert expected in line


def test_a_damaged_config_json_is_refused_with_a_way_out(tmp_path):
    line = refused(lambda: described_by(tmp_path, "{"))
    assert "config.json: no JSON (" in line
    assert line.endswith("it describes the weights in its folder; keep the two apart")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"model": "resnet50"}, "architecture resnet50"),
        ({"gp": "catavgmax"}, "global_pool catavgmax"),
        ({"in_chans": 1}, "in_chans 1"),
        ({"model_kwargs": {"norm_eps": 1e-5}}, "built with norm_eps 1e-05"),
    ],
)
def test_a_training_of_another_network_is_refused(tmp_path, args, expected):
    line = refused(lambda: described_by(tmp_path, **args))
    assert line.startswith(f"{tmp_path / 'model.safetensors'}: args in the file: ")
    assert expected in line


def test_config_json_and_training_have_to_agree(tmp_path):
    weights = described_by(tmp_path, CONFIG, crop_pct=0.9)
    line = refused(lambda: preprocess_of(weights))
    assert "crop_pct is 0.9 in args in the file, 0.875 in config.json; " in line
