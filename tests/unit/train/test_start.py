"""From options to a recipe and its record."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from irv2.data.dataset import ImageFolder
from irv2.errors import UsageError
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
