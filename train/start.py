"""From a command line to a running trainer: data, recipe, run folder, resume."""

import dataclasses
import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from irv2 import __version__
from irv2.dataset import BadImages, ImageFolder, open_split
from irv2.model import inception_resnet_v2
from irv2.options import Terminated
from irv2.runners.torch import resolve_device
from irv2.samples import is_sample, resolve_data
from irv2.summary import summarize, summary_table
from train.loop import Machine, Trainer
from train.run import Run
from train.settings import PUBLISHED, SETTINGS, Recipe, sample_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for; `overrides` are fields of Recipe given on the command line."""

    setting: str
    out: Path
    data: Path | None = None
    resume: bool = False
    workers: int | None = None
    save_minutes: float = 10.0
    device: str = "auto"
    limit: int | None = None
    bad_images: BadImages = "error"
    overrides: dict[str, Any] = field(default_factory=dict)


def train(request: Request) -> dict[str, Any]:
    """Train, or resume, to the last epoch; returns the best epoch's errors and files.

    Raises Irv2Error; on SIGTERM or Ctrl-C the state is saved first.
    """
    data = resolve_data(request.data)
    bad_images = request.bad_images
    train_set = open_split(data, "train", bad_images=bad_images).first(request.limit)
    val_set = open_split(data, "val", train_set.classes, bad_images).first(request.limit)
    recipe = resolve_recipe(request, is_sample(data), len(train_set))
    _log_recipe(recipe, train_set, val_set)
    run = Run(request.out, _config(recipe, data, train_set, val_set))
    checkpoint = run.open(must_exist=request.resume)
    rows = run.metrics()
    if rows and rows[-1]["epoch"] == recipe.epochs:
        logger.info("%s: finished before, nothing to do", run.path)
    else:
        workers = request.workers
        if workers is None:  # the sample's 1437 small files are not worth starting processes for
            workers = 0 if is_sample(data) else os.cpu_count() or 1
        machine = Machine(
            device=resolve_device(request.device), workers=workers,
            save_minutes=request.save_minutes, bad_images=bad_images,
        )  # fmt: skip
        trainer = Trainer(run, recipe, train_set, val_set, machine)
        if checkpoint is not None:
            trainer.resume(checkpoint)
            logger.info("resuming %s after step %d", run.last, checkpoint.step)
        try:
            with run.locked():
                trainer.train()
        except (KeyboardInterrupt, Terminated):
            if not run.last.is_file():
                raise
            logger.warning(
                "saved %s; resume with: irv2-train --setting %s --out %s --resume and the other "
                "options as before", run.last, request.setting, request.out,
            )  # fmt: skip
            raise
    return _result(run)


def resolve_recipe(request: Request, on_sample: bool, num_images: int) -> Recipe:
    """The setting, made fit for the sample where that is the data, with the user's overrides."""
    base = SETTINGS[request.setting]
    overrides = dict(request.overrides)
    if on_sample:
        epochs = {"epochs": overrides["epochs"]} if "epochs" in overrides else {}
        base = sample_recipe(request.setting, num_images, **epochs)
    if "image_size" in overrides:
        overrides["resize"] = round(base.resize * overrides["image_size"] / base.image_size)
    return dataclasses.replace(base, **overrides)


def show_model(request: Request) -> dict[str, Any]:
    """The network's blocks: of the setting for 1000 classes, or for the classes of --data."""
    recipe = resolve_recipe(request, on_sample=False, num_images=0)
    num_classes = len(open_split(request.data, "train").classes) if request.data else 1000
    config = recipe.model_config(num_classes)
    rows = summarize(inception_resnet_v2(**dataclasses.asdict(config)), recipe.image_size)
    return {
        "model": config.to_json(),
        "image_size": recipe.image_size,
        "blocks": [dataclasses.asdict(row) for row in rows],
        "num_convolutions": sum(row.num_convolutions for row in rows),
        "num_parameters": sum(row.num_parameters for row in rows),
        "flop": sum(row.flop for row in rows),
        "table": summary_table(rows),
    }


def _config(
    recipe: Recipe, data: Path, train_set: ImageFolder, val_set: ImageFolder
) -> dict[str, Any]:  # fmt: skip
    files = hashlib.sha256("\n".join([*train_set.files, "", *val_set.files]).encode())
    return {
        "recipe": recipe.to_json(),
        "data": {
            "num_train": len(train_set),
            "num_val": len(val_set),
            "num_classes": len(train_set.classes),
            "files_sha256": files.hexdigest(),
        },
        "data_path": str(data.absolute()),
        "versions": {"irv2": __version__, "torch": torch.__version__},
    }


def _log_recipe(recipe: Recipe, train_set: ImageFolder, val_set: ImageFolder) -> None:
    logger.info(
        "setting %s on %d training and %d validation images in %d classes; %s",
        recipe.setting, len(train_set), len(val_set), len(train_set.classes),
        PUBLISHED[recipe.setting],
    )  # fmt: skip
    differences = recipe.differences(SETTINGS[recipe.setting])
    if differences:
        logger.info("differs from the setting: %s", ", ".join(differences))


def _result(run: Run) -> dict[str, Any]:
    best = min(run.metrics(), key=lambda row: row["val_top1_error"])
    return {
        "out": str(run.path),
        "best": str(run.best),
        "last": str(run.last),
        "epoch": int(best["epoch"]),
        "top1_error": best["val_top1_error"],
        "top5_error": best["val_top5_error"],
    }
