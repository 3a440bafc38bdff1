"""From options to a recipe and its record."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import ImageFolder
from irv2.errors import CheckpointError, UsageError
from irv2.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from irv2.model.build import build
from irv2.network_config import NETWORKS, ModelConfig, NetworkConfig, SlimConfig
from irv2.system.files import file_sha256
from irv2.train.cli import main as program
from irv2.train.data.loader import num_batches
from irv2.train.processes import Processes, check_gpus
from irv2.train.settings import SETTINGS, Recipe
from irv2.train.start import Request, resolve_recipe, run_config


def resolved(**overrides: object) -> Recipe:
    request = Request(setting="2", out=Path("run"), overrides=overrides)
    return resolve_recipe(request, on_sample=False, num_images=1000)


def test_every_value_of_a_setting_can_be_overridden():
    values = {
        "resampling": "opencv-cubic",
        "flip": False,
        "resize": 320,
        "dropout": 0.5,
        "momentum": 0.9,
        "weight_decay": 4e-5,
        "epochs": 3,
        "gamma": 0.94,
        "decay_steps": 10,
    }
    recipe = resolved(**values)
    assert {name: getattr(recipe, name) for name in values} == values
    assert recipe.model_config(10).dropout == 0.5
    assert (recipe.preprocess.resize, recipe.preprocess.resampling) == (320, "opencv-cubic")


def test_the_resized_side_follows_the_crop_unless_it_is_given():
    assert resolved(image_size=150).resize == round(328 * 150 / 299)
    assert resolved(image_size=150, resize=150).resize == 150
    with pytest.raises(UsageError, match="--resize: 149 pixels; expected 150 or more"):
        resolved(image_size=150, resize=149)


def modern(num_images: int, num_processes: int = 1, **overrides: object) -> Recipe:
    request = Request(setting="2", out=Path("run"), modern=True, overrides=overrides)
    return resolve_recipe(request, False, num_images, num_processes)


@pytest.mark.parametrize("batch_size", [8, 32, 64, 96, 256, 1024])
@pytest.mark.parametrize("num_images", [300, 1025, 5000])
def test_the_modern_cosine_ends_with_the_run_whatever_the_batch(num_images, batch_size):
    recipe = modern(num_images, epochs=30, batch_size=batch_size, bn_group=8)
    last = recipe.epochs * num_batches(num_images, recipe)
    full_rate = recipe.learning_rate * batch_size / 64
    assert 0 < recipe.learning_rate_at(last) < 0.01 * full_rate
    warm_up = recipe.warmup_steps / (last * batch_size / 64)
    assert warm_up == pytest.approx(1 / 20, abs=0.02)  # whole steps of 64


def test_the_modern_cosine_knows_the_batch_of_many_processes():
    assert modern(300, num_processes=8, epochs=10).batch_size == 256
    assert modern(300, num_processes=8, epochs=10) == modern(300, epochs=10, batch_size=256)


def test_the_modern_schedule_of_batches_of_64_is_the_old_one():
    for num_images in (300, 6400, 1_281_167):
        recipe = modern(num_images, epochs=10)
        steps = 10 * math.ceil(num_images / 64)
        assert (recipe.warmup_steps, recipe.cosine_steps) == (steps // 20, steps)
    assert modern(300, warmup_steps=7).warmup_steps == 7


def test_the_line_about_a_recipe_leaves_nothing_out():
    text = str(SETTINGS["2"])
    names = {field.name for field in dataclasses.fields(Recipe)} - {"init_sha256"}  # of no file
    assert {part.split()[0] for part in text.split(", ")} == names
    assert "momentum 0.4737, weight_decay 0.0001, batch_size 64, bn_group 32, blocks 5 10 5" in text


def images(**other: object) -> ImageFolder:
    """Three images in a shard, or what `other` makes of them."""
    fields: dict[str, object] = {
        "root": Path("data/train"),
        "classes": ("cat", "dog"),
        "labels": np.array([0, 0, 1]),
        "files": ("0.tar/cat/a.jpg", "0.tar/cat/b.jpg", "0.tar/dog/a.jpg"),
        "spans": np.array([[512, 90], [1536, 80], [2560, 70]]),
    }
    return ImageFolder(**{**fields, **other})


def identity(train_set: ImageFolder) -> dict[str, object]:
    return run_config(SETTINGS["2"], train_set, images())["data"]


@pytest.mark.parametrize(
    "other",
    [
        {"classes": ("dog", "cat")},
        {"labels": np.array([0, 1, 1])},
        {"spans": np.array([[512, 91], [1536, 80], [2560, 70]])},
        {"files": ("0.tar/cat/a.jpg", "0.tar/cat/c.jpg", "0.tar/dog/a.jpg")},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_classes_labels_spans_or_files_are_other_images(other):
    assert identity(images(**other)) != identity(images()) == identity(images())


def test_a_gpu_for_every_process_of_this_machine():
    eight = Processes(rank=8, size=16, local_rank=0, local_size=8)
    check_gpus("cuda", 8, eight)
    check_gpus("cpu", 0, eight)
    with pytest.raises(UsageError, match="--device cuda: 4 GPUs for 8 processes here"):
        check_gpus("cuda", 4, eight)


SLIM = "inception_resnet_v2_slim"


def test_tf_slims_network_has_its_blocks_and_its_batch_norm_and_all_else_of_the_setting():
    differing = {line.split()[0] for line in resolved(arch=SLIM).differences(SETTINGS["2"])}
    assert differing == {"arch", "blocks", "residual_scale", "bn_momentum"}
    recipe = resolved(arch=SLIM, width=0.5, bn_momentum=0.1)
    assert recipe.model_config(7) == SlimConfig(num_classes=7, width=0.5)
    assert recipe.bn_momentum == 0.1


def test_a_residual_scale_is_of_the_papers_network_alone():
    expected = f"--residual-scale: given for {SLIM}; expected inception_resnet_v2, the paper's"
    with pytest.raises(UsageError, match=expected):
        resolved(arch=SLIM, residual_scale=0.2)
    assert resolved(residual_scale=0.2).model_config(7).residual_scale == 0.2


SEEN = Preprocess(
    resize=100, crop=80, resampling="pillow-bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
)
ORIGINS = [
    SlimConfig(num_classes=3, blocks=(1, 2, 1), width=0.1),
    ModelConfig(num_classes=3, blocks=(2, 1, 1), width=0.1, residual_scale=0.3),
]


def origin(path: Path, config: NetworkConfig) -> Path:
    classes = ["cat", "dog", "emu"]
    fields = {"classes": classes, "preprocess": SEEN, "setting": "imported", "epoch": 0, "step": 0}
    Checkpoint(model=config, state_dict=build(config).state_dict(), **fields).save(path)
    return path


def begun_from(path: Path, on_sample: bool = False, **overrides: object) -> Recipe:
    request = Request(setting="2", out=path.parent / "run", init_from=path, overrides=overrides)
    return resolve_recipe(request, on_sample, num_images=1000)


@pytest.mark.parametrize("on_sample", [False, True])
@pytest.mark.parametrize("config", ORIGINS, ids=lambda config: config.arch)
def test_the_checkpoint_decides_network_and_preprocessing(tmp_path, config, on_sample):
    recipe = begun_from(origin(tmp_path / "a.pt", config), on_sample)
    assert recipe.model_config(3) == config
    assert recipe.preprocess == SEEN
    assert recipe.init_sha256 == file_sha256(tmp_path / "a.pt")
    assert recipe.augmentation == ("shift" if on_sample else "area-crop")  # the sample's own
    statistics = 0.1 if on_sample else config.bn_momentum
    assert recipe.bn_momentum == statistics


def test_options_overrule_the_checkpoints_preprocessing(tmp_path):
    path = origin(tmp_path / "a.pt", ORIGINS[0])
    assert begun_from(path, image_size=160).preprocess == dataclasses.replace(
        SEEN, resize=200, crop=160
    )
    options = {"resampling": "opencv-cubic", "mean": (0.1, 0.1, 0.1), "std": (1.0, 1.0, 1.0)}
    assert begun_from(path, **options).preprocess == dataclasses.replace(SEEN, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"arch": "inception_resnet_v2"}, rf"another network, {SLIM}; .*leave out --arch"),
        ({"width": 0.2}, r"width 0\.1 there and 0\.2 here; .* leave out --width"),
        ({"blocks": (1, 1, 1)}, r"blocks \[1, 2, 1\] there and \[1, 1, 1\] here"),
    ],
)
def test_options_that_contradict_the_checkpoints_network_are_refused(tmp_path, options, expected):
    path = origin(tmp_path / "a.pt", ORIGINS[0])
    with pytest.raises(CheckpointError, match=expected):
        begun_from(path, **options)
    same = {"arch": SLIM, "width": 0.1, "blocks": (1, 2, 1)}
    assert begun_from(path, **same) == begun_from(path)


def test_a_run_that_began_with_a_checkpoint_keeps_what_it_began_with(tmp_path):
    """Also one of an older version, which had the setting's preprocessing whatever the file's."""
    path = origin(tmp_path / "a.pt", ORIGINS[1])
    recipe = begun_from(path, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize=90).to_json()
    later = ("arch", "mean", "std", "bn_momentum")
    older = {name: value for name, value in recipe.items() if name not in later}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").touch()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"recipe": older, "data": {}}))
    assert begun_from(path).to_json() == recipe
    path.unlink()
    assert begun_from(path).to_json() == recipe
    assert begun_from(origin(path, ORIGINS[0])).arch == SLIM  # another file is another run


def test_the_programs_names_of_networks_are_the_networks():
    [arch] = [option for option in program.params if option.name == "arch"]
    assert set(arch.type.choices) == NETWORKS.keys()
