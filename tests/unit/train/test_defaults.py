"""Help of irv2-train and irv2 finetune shows the values with which they train."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from irv2.checkpoint import Checkpoint
from irv2.images.preprocess import Preprocess
from irv2.model.build import build
from irv2.network_config import SlimConfig
from irv2.train.cli import main as train
from irv2.train.finetune_cli import finetune
from irv2.train.settings import FEATURE_CROPS, FINETUNE, SETTINGS, Recipe
from irv2.train.start import Request, resolve_recipe


def defaults(program: click.Command) -> dict[str, str]:
    """What help shows of each option of a recipe's value."""
    context = click.Context(program)
    names = {field.name for field in dataclasses.fields(Recipe)} | {"head_epochs"}
    found = {}
    for option in program.params:
        if option.name in names - {"setting", "deterministic"}:
            _, text = option.get_help_record(context)
            [found[option.name]] = re.findall(r"\[default: (.*?)\]", text)
    return found


def as_given(program: click.Command, name: str, text: str) -> object:
    """The value that an option has if what help shows is given."""
    [option] = [option for option in program.params if option.name == name]
    if option.secondary_opts:
        return f"--{text}" in option.opts
    value = text.split() if option.nargs > 1 else text
    return option.type_cast_value(click.Context(program), value)


@pytest.mark.parametrize("setting", SETTINGS)
def test_train_shows_its_settings_values(setting):
    recipe = resolve_recipe(Request(setting=setting, out=Path("run")), False, 1000)
    shown = defaults(train)
    assert shown.pop("arch") == "that of --init-from, else the paper's"
    for name, text in shown.items():
        value = text.partition(";")[0]
        if by_setting := re.search(rf"([\w.]+) \({setting}\)", value):
            value = by_setting[1]
        if name != "feature_crops":  # 0, which is no number to give
            assert as_given(train, name, value) == getattr(recipe, name), name
    assert shown["blocks"] == "5 10 5; TF-slim's network: 10 20 10; or as --init-from"
    assert shown["bn_momentum"] == "0.1; TF-slim's network: 0.0003"
    assert shown["epochs"] == "90 (1), 90 (2), 300 (paper)"


@pytest.mark.parametrize("stage", ["all", "head"])
def test_finetune_shows_its_own_recipe(tmp_path, stage):
    config = SlimConfig(num_classes=2, blocks=(1, 1, 1), width=0.03)
    images = Preprocess(resize=75, crop=75)
    Checkpoint(
        model=config, state_dict=build(config).state_dict(), classes=["cat", "dog"],
        preprocess=images, setting="imported", epoch=0, step=0,
    ).save(tmp_path / "begun.pt")  # fmt: skip
    overrides = {} if stage == "all" else {"trained": stage}
    request = Request(
        setting="finetune",
        out=tmp_path / "run",
        init_from=tmp_path / "begun.pt",
        overrides=overrides,
    )
    recipe = resolve_recipe(request, False, 20 * 64)
    shown = defaults(finetune)
    assert int(shown.pop("head_epochs")) == FINETUNE.epochs
    assert int(shown.pop("feature_crops")) == FEATURE_CROPS
    assert shown.pop("warmup_steps") == "1/20 of all"
    assert recipe.warmup_steps == recipe.epochs
    kept = {name for name, text in shown.items() if text == "as CKPT"}
    assert kept == {"image_size", "resize", "resampling", "mean", "std"}
    for name in shown.keys() - kept - {"trained"}:
        all_stages, _, head = shown[name].partition("; of a head ")
        value = head if head and stage == "head" else all_stages
        assert as_given(finetune, name, value) == getattr(recipe, name), name
    assert shown["trained"] == "all"


def test_finetune_has_no_option_that_means_nothing_there():
    names = {option.name for option in finetune.params}
    assert not names & {"setting", "recipe", "init_from", "gamma", "decay_steps", "arch", "width"}
