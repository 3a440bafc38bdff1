"""From a command line to a running trainer: data, recipe, run folder, resuming."""

import dataclasses
import hashlib
import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irv2 import __version__
from irv2.checkpoint import Checkpoint
from irv2.data.dataset import BadImages, ImageFolder, open_split
from irv2.data.samples import is_sample, resolve_data
from irv2.errors import DataError, EngineError, ImageError, UsageError
from irv2.manifest import Source
from irv2.model.summary import summarize, summary_table
from irv2.network_config import ModelConfig
from irv2.runners.torch import resolve_device
from irv2.system.files import file_sha256
from irv2.system.machine import num_cores
from irv2.system.stop import Terminated
from irv2.system.text import first_few, quoted
from irv2.train.data.loader import num_batches
from irv2.train.data.workers import require_resources
from irv2.train.learner.initial_weights import (
    inherited,
    initial_model,
    require_same_network,
)
from irv2.train.learner.step import Computation
from irv2.train.loop import Machine, Trainer
from irv2.train.processes import Processes, joined
from irv2.train.run.folder import Run
from irv2.train.settings import (
    BEST,
    INHERITED,
    PUBLISHED,
    RECIPES,
    Recipe,
    finetune_recipe,
    from_json,
    modern_recipe,
    sample_recipe,
    setting_for,
    with_cosine,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The user's options; `overrides` are fields of Recipe given on the command line.

    `command` is that line, shown to resume the run.
    """

    setting: str
    out: Path
    data: Path | None = None
    resume: bool = False
    init_from: Path | None = None
    modern: bool = False
    workers: int | None = None
    save_minutes: float = 10.0
    chance_steps: int = 5000
    time_budget_minutes: float | None = None
    micro_batch: int | None = None
    compile: bool = False
    checkpoint_activations: bool = False
    device: str = "auto"
    limit: int | None = None
    bad_images: BadImages = "error"
    overrides: dict[str, Any] = field(default_factory=dict)
    command: str = "irv2-train"


def train(request: Request) -> dict[str, Any] | None:
    """Train or resume to the last epoch; return the best epoch's errors (percent) and files.

    Of several processes only the first returns a result. Raises Irv2Error; on SIGTERM or Ctrl-C
    the state is saved first.
    """
    with joined(request.device) as processes:
        # A separate function, whose end frees everything that uses the process group.
        return _train_among(processes, request)


def _train_among(processes: Processes, request: Request) -> dict[str, Any] | None:
    with ExitStack() as lock:
        train_set, val_set = data = processes.in_turn(lambda: _open_data(request))
        on_sample = request.data is None or is_sample(request.data)
        recipe = processes.from_first(
            lambda: resolve_recipe(request, on_sample, len(train_set), processes.size)
        )
        machine = _machine(request, on_sample, processes)
        processes.from_first(lambda: machine.computation.check(recipe, processes))
        processes.from_first(lambda: num_batches(len(train_set), recipe))
        processes.together(lambda: require_resources(machine.workers))
        _log_recipe(recipe, train_set, val_set)
        if processes.is_first:
            _warn_of_statistics(recipe, len(train_set))
        _log_machine(recipe, machine, processes)
        config = run_config(recipe, train_set, val_set)
        expected = processes.from_first(lambda: config["data"])
        processes.together(lambda: _check_copy(train_set.data, config["data"], expected))
        config["machine"] = _machine_json(machine, processes, request.command)
        run = Run(request.out, config)
        processes.from_first(lambda: run.check(must_exist=request.resume))
        rows = processes.from_first(run.metrics)
        if recipe.is_over(rows):
            logger.info("%s: already finished, nothing to do", run.path)
        else:
            processes.from_first(lambda: lock.enter_context(run.locked()))
            checkpoint = processes.from_first(run.start)
            init_from = request.init_from if checkpoint is None else None
            model = processes.together(lambda: initial_model(recipe, train_set.classes, init_from))
            begun_from = processes.together(lambda: _source(init_from, recipe.init_sha256))
            trainer = Trainer(run, recipe, data, model, machine, processes, begun_from)
            _train(trainer, run, checkpoint, request, processes)
        return _result(run) if processes.is_first else None


def _source(init_from: Path | None, sha256: str) -> Source | None:
    """Describe the checkpoint that a new run begins with, for its bundle's chain."""
    return None if init_from is None else Checkpoint.load(init_from).source(sha256)


def _train(
    trainer: Trainer,
    run: Run,
    checkpoint: Checkpoint | None,
    request: Request,
    processes: Processes,
) -> None:
    if checkpoint is not None:
        trainer.resume(checkpoint)
        logger.info("resuming %s after step %d", run.last, checkpoint.step)
    try:
        trainer.train()
    except (KeyboardInterrupt, Terminated, ImageError, EngineError, SystemExit):
        # SystemExit: another process has failed
        if processes.is_first and run.last.is_file():
            option = "" if request.resume else " --resume"
            logger.warning("saved %s; resume with: %s%s", run.last, request.command, option)
        raise


def _open_data(request: Request) -> tuple[ImageFolder, ImageFolder]:
    data, bad_images = resolve_data(request.data), request.bad_images
    train_set = open_split(data, "train", bad_images=bad_images).first(request.limit)
    if len(train_set.classes) == 1:
        raise DataError(
            train_set.place,
            f"only one class, {quoted(train_set.classes[0])}",
            "two or more, which the network is to tell apart",
            "add images of another one",
        )
    _warn_of_single_images(train_set)
    val_set = open_split(data, "val", train_set.classes, bad_images).first(request.limit)
    return train_set, val_set


def _warn_of_single_images(train_set: ImageFolder) -> None:
    single = np.flatnonzero(np.bincount(train_set.labels, minlength=len(train_set.classes)) == 1)
    if len(single):
        logger.warning(
            "%s: %d of %d classes have a single image, from which little can be learnt: %s",
            train_set.place,
            len(single),
            len(train_set.classes),
            first_few([quoted(train_set.classes[i]) for i in single]),
        )


def resolve_recipe(
    request: Request, on_sample: bool, num_images: int, num_processes: int = 1
) -> Recipe:
    """Derive the recipe from the setting, adapted to the sample if that is the data, and overrides.

    The checkpoint of --init-from decides the network, and the preprocessing unless it is
    overridden. More processes than the original's two enlarge the batch: each has at least one
    group. Raises UsageError for contradicting options and CheckpointError if --init-from can't be
    read or has another network than the options ask for.
    """
    overrides = dict(request.overrides)
    decided = _decided_by_checkpoint(request)
    if request.setting == "finetune":  # people's photographs are turned, whatever came before
        del decided["orientation"]
    arch = decided.get("arch") or overrides.get("arch", ModelConfig.arch)
    epochs = {"epochs": overrides["epochs"]} if "epochs" in overrides else {}
    if request.setting == "finetune":
        base = finetune_recipe(overrides.get("trained", "all"), on_sample)
    elif on_sample:
        base = sample_recipe(request.setting, num_images, arch=arch, **epochs)
    else:
        base = setting_for(request.setting, arch)
    base = dataclasses.replace(base, **decided)
    if base.residual_scale is None and "residual_scale" in overrides:
        raise UsageError(
            "--residual-scale",
            f"given for {base.arch}",
            f"{ModelConfig.arch}, the paper's network",
            "leave it out: TF-slim's has one for each grid",
        )
    held = overrides.get("batch_norm", base.batch_norm) == "held"
    if held and "bn_momentum" in overrides:
        raise UsageError(
            "--bn-momentum",
            "given where batch norm keeps its statistics",
            "--batch-norm group, which adds to them",
            "pass that too, or leave it out",
        )
    if request.modern and overrides.keys() & {"gamma", "decay_steps"}:
        raise UsageError(
            "--recipe modern",
            "given with the setting's decays",
            "a cosine alone",
            "leave out --gamma and --decay-steps",
        )
    if "image_size" in overrides and "resize" not in overrides:
        overrides["resize"] = round(base.resize * overrides["image_size"] / base.image_size)
    group = overrides.get("bn_group", base.bn_group)
    overrides.setdefault("batch_size", max(base.batch_size, group * num_processes))
    recipe = dataclasses.replace(base, **overrides)
    if request.init_from is not None:
        require_same_network(recipe.model_config(0), base.model_config(0), request.init_from)
    if request.setting == "finetune":
        recipe = dataclasses.replace(with_cosine(recipe, num_images), **overrides)
    if request.modern:  # computed last: its cosine depends on the final epochs and batch size
        recipe = dataclasses.replace(modern_recipe(recipe, num_images), **overrides)
    return recipe


def _decided_by_checkpoint(request: Request) -> dict[str, Any]:
    """Return the fields of Recipe that --init-from decides.

    A run that has begun keeps those that it began with, and no longer needs the file.
    """
    path = request.init_from
    if path is None:
        return {}
    begun = Run(request.out, {}).begun_recipe
    sha256 = begun and begun["init_sha256"]
    if begun and sha256 and (not path.exists() or file_sha256(path) == sha256):
        return from_json({name: begun[name] for name in INHERITED})
    return inherited(path)


def _machine(request: Request, on_sample: bool, processes: Processes) -> Machine:
    cores = max(1, num_cores() // processes.local_size)
    workers = request.workers
    if workers is None:  # the sample's 1437 small files don't merit starting processes
        workers = 0 if on_sample else cores
    device = resolve_device(request.device)
    if device == "cuda":
        device = f"cuda:{processes.local_rank}"
    return Machine(
        computation=Computation(
            device=device,
            micro_batch=request.micro_batch,
            compile=request.compile,
            checkpoint_activations=request.checkpoint_activations,
        ),
        workers=workers,
        threads=request.workers or cores,
        save_minutes=request.save_minutes,
        chance_steps=request.chance_steps,
        time_budget_minutes=request.time_budget_minutes,
        bad_images=request.bad_images,
    )


def show_model(request: Request) -> dict[str, Any]:
    """Summarise the network's blocks for the classes of --data, or for 1000 classes without it."""
    recipe = resolve_recipe(request, on_sample=False, num_images=0)
    num_classes = len(open_split(request.data, "train").classes) if request.data else 1000
    config = recipe.model_config(num_classes)
    rows = summarize(config, recipe.image_size)
    return {
        "model": config.to_json(),
        "image_size": recipe.image_size,
        "blocks": [dataclasses.asdict(row) for row in rows],
        "num_convolutions": sum(row.num_convolutions for row in rows),
        "num_parameters": sum(row.num_parameters for row in rows),
        "flop": sum(row.flop for row in rows),
        "table": summary_table(rows),
    }


def run_config(recipe: Recipe, train_set: ImageFolder, val_set: ImageFolder) -> dict[str, Any]:
    """Return what a run must have in common with the one it resumes, and where the images lie."""
    files = hashlib.sha256("\n".join([*train_set.files, "", *val_set.files]).encode())
    labels = hashlib.sha256(json.dumps(train_set.classes).encode())
    for split in (train_set, val_set):
        labels.update(split.labels.tobytes())
        labels.update(b"" if split.spans is None else split.spans.tobytes())
    return {
        "recipe": recipe.to_json(),
        "data": {
            "num_train": len(train_set),
            "num_val": len(val_set),
            "num_classes": len(train_set.classes),
            "files_sha256": files.hexdigest(),
            "labels_sha256": labels.hexdigest(),  # over classes, labels and positions in shards
        },
        "data_path": str(train_set.data.absolute()),
    }


def _check_copy(data: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise DataError if this process would train on other images than the first one does."""
    if found != expected:
        raise DataError(
            data,
            f"here {found['num_train']} + {found['num_val']} images, or other names or labels",
            f"the {expected['num_train']} + {expected['num_val']} of the first process",
            "copy the data again, or give all machines one folder",
        )


def _machine_json(machine: Machine, processes: Processes, command: str) -> dict[str, Any]:
    """Describe the machine that the run began on; another may resume it."""
    return {
        **dataclasses.asdict(machine),
        "processes": processes.size,
        "torch_threads": torch.get_num_threads(),
        "versions": {"irv2": __version__, "torch": torch.__version__},
        "command": command,
    }


def _log_recipe(recipe: Recipe, train_set: ImageFolder, val_set: ImageFolder) -> None:
    logger.info(
        "setting %s on %d training and %d validation images in %d classes; %s",
        recipe.setting,
        len(train_set),
        len(val_set),
        len(train_set.classes),
        PUBLISHED[recipe.setting]
        if recipe.arch == ModelConfig.arch or recipe.setting == "finetune"
        else "with TF-slim's network no setting has a published result",
    )
    logger.info("recipe: %s", recipe)
    differences = recipe.differences(RECIPES[recipe.setting])
    if differences:
        logger.info("differs from the setting: %s", ", ".join(differences))


def _warn_of_statistics(recipe: Recipe, num_images: int) -> None:
    """Warn if evaluation would see more of batch norm's first statistics than of the images'."""
    if recipe.trained == "head" or recipe.batch_norm == "held":
        return
    steps = recipe.epochs * recipe.num_batches(num_images)
    usual = ModelConfig.bn_momentum
    if recipe.bn_momentum < usual and (1 - recipe.bn_momentum) ** steps > 1 / 2:
        logger.warning(
            "bn_momentum %g: after all %d steps, the running statistics with which this run is "
            "evaluated are still mostly those it began with; for short runs pass --bn-momentum %g",
            recipe.bn_momentum,
            steps,
            usual,
        )


def _log_machine(recipe: Recipe, machine: Machine, processes: Processes) -> None:
    logger.info(
        "%d process%s of %d images per step, %s, %s; TF32 is off",
        processes.size,
        "es" if processes.size > 1 else "",
        recipe.batch_size // processes.size,
        machine.computation.device,
        recipe.precision,
    )


def _result(run: Run) -> dict[str, Any]:
    """Name the run's files and what is recorded in those of best weights, if they are there."""
    result: dict[str, Any] = {"out": str(run.path), "last": str(run.last)}
    rows = run.best_rows()
    for file, kind in BEST.items():
        if kind in rows:
            result |= {file: str(run.best_of[kind]), **_errors(rows[kind], kind)}
    return result


def _errors(row: dict[str, float], kind: str) -> dict[str, float]:
    return {
        f"{kind}epoch": int(row["epoch"]),
        f"{kind}top1_error": row[f"{kind}val_top1_error"],
        f"{kind}top5_error": row[f"{kind}val_top5_error"],
    }
