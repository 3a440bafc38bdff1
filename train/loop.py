"""The training loop: epochs of steps, checkpoints, evaluation of the file just written.

Source: fb.resnet.torch's train.lua with the fork's learning rate per iteration. Resuming is exact:
the order of images, their augmentation, the learning rate and what dropout drops are functions of
seed and step; the checkpoint holds the optimiser's momentum and the position.
"""

import dataclasses
import logging
import math
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from irv2.checkpoint import Checkpoint
from irv2.dataset import BadImages, ImageFolder
from irv2.errors import DataError, Irv2Error
from irv2.evaluate import Ledger, classify_part, share
from irv2.model import InceptionResNetV2
from irv2.progress import Progress
from irv2.runners.torch import TorchRunner
from train.interrupt import Interrupt
from train.loader import batch_indices, load_epoch
from train.memory import peak_memory_mib
from train.processes import Processes
from train.run import Run
from train.saver import Saver
from train.settings import Recipe
from train.step import Computation, Learner

logger = logging.getLogger(__name__)

SHOW_EVERY_STEPS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What does not decide the weights: where, how and how guarded the run is.

    After every `chance_steps` steps that were no better than chance it stops; 0: never.
    """

    computation: Computation
    workers: int = 0
    save_minutes: float = 10.0
    chance_steps: int = 5000
    bad_images: BadImages = "error"


class DivergenceError(Irv2Error):
    """The loss is no longer a number, or nothing is learnt."""


class Trainer:
    """Trains one run from its start or from a checkpoint to its last epoch."""

    def __init__(
        self, run: Run, recipe: Recipe, data: tuple[ImageFolder, ImageFolder],
        model: InceptionResNetV2, machine: Machine, processes: Processes,
    ) -> None:  # fmt: skip
        self._run, self._recipe, self._machine, self._processes = run, recipe, machine, processes
        self._train_set, self._val_set = data
        self._device = torch.device(machine.computation.device)
        self._learner = Learner(model, recipe, machine.computation, processes)
        self._interrupt = Interrupt(is_repeated=processes.size > 1)
        self._saver = Saver()
        self._epoch = 1  # the epoch being trained
        self._batch = 0  # its next batch
        self._step = 0  # optimiser steps so far, over the whole run
        self._totals = self._zeros()  # of the epoch: loss, top-1, top-5 wrong, images
        self._guarded = self._zeros()  # the same since chance was last looked at
        self._saved_at = time.monotonic()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on exactly where `checkpoint` was written."""
        state = checkpoint.training
        self._learner.load(checkpoint)
        self._epoch, self._batch, self._step = state["epoch"], state["batch"], checkpoint.step
        self._totals = state["totals"].to(self._device)
        self._guarded = state["guarded"].to(self._device)
        finished = self._processes.from_first(self._run.metrics)
        if any(row["epoch"] == self._epoch for row in finished):
            self._next_epoch()

    def train(self) -> None:
        """Train to the last epoch. A signal saves and then raises KeyboardInterrupt or Terminated.

        Raises DivergenceError where the loss is not finite or nothing is learnt; the last
        checkpoint stays.
        """
        with self._interrupt, self._saver:
            while self._epoch <= self._recipe.epochs:
                started, images_before = time.monotonic(), self._totals[3].item()
                self._train_epoch()
                seconds = time.monotonic() - started
                self._save()
                self._saver.wait()
                self._finish_epoch(seconds, self._totals[3].item() - images_before)
                self._next_epoch()

    def _zeros(self) -> Tensor:
        return torch.zeros(4, dtype=torch.float64, device=self._device)

    def _next_epoch(self) -> None:
        self._epoch, self._batch, self._totals = self._epoch + 1, 0, self._zeros()

    def _train_epoch(self) -> None:
        recipe, machine, processes = self._recipe, self._machine, self._processes
        num_batches = len(batch_indices(len(self._train_set), recipe, self._epoch))
        self._learner.model.train()
        batches = load_epoch(
            self._train_set, recipe, self._epoch, start=self._batch, workers=machine.workers,
            bad_images=machine.bad_images, device=self._device, rank=processes.rank,
            world_size=processes.size,
        )  # fmt: skip
        title = f"epoch {self._epoch}/{recipe.epochs}"
        done = min(self._batch * recipe.batch_size, len(self._train_set))
        with Progress(title, len(self._train_set), "images", done) as bar:
            for number, batch in batches:
                num_images = processes.total(len(batch.labels))
                if not num_images:  # none of this batch could be read
                    continue
                self._step += 1
                totals = self._learner.step(self._step, batch, num_images)
                self._totals, self._guarded = self._totals + totals, self._guarded + totals
                self._batch = number + 1
                is_shown = number % SHOW_EVERY_STEPS == 0 or self._batch == num_batches
                bar.advance(num_images, **(self._shown() if is_shown else {}))
                self._after_step()
        self._batch = num_batches

    def _shown(self) -> dict[str, str]:
        """Where the epoch stands; this is where a loss that is no number is noticed."""
        means = self._means()
        if not math.isfinite(means["train_loss"]):
            raise self._diverged(f"the loss is {means['train_loss']}", "finite numbers")
        return {
            "loss": f"{means['train_loss']:.3f}",
            "top1": f"{means['train_top1_error']:.1f} %",
            "top5": f"{means['train_top5_error']:.1f} %",
        }

    def _means(self) -> dict[str, float]:
        loss, top1, top5, num_images = self._totals.tolist()
        return {
            "train_loss": loss / num_images,
            "train_top1_error": 100 * top1 / num_images,
            "train_top5_error": 100 * top5 / num_images,
        }

    def _after_step(self) -> None:
        """Save where it is due or a signal came to any process, and stop for the signal."""
        if self._step == 1:
            logger.info("peak memory after step 1: %.0f MiB", peak_memory_mib(self._device))
        if self._machine.chance_steps and self._step % self._machine.chance_steps == 0:
            self._check_chance()
        self._saver.check()
        is_due = time.monotonic() - self._saved_at > 60 * self._machine.save_minutes
        save, signal_number = self._processes.largest(int(is_due), self._interrupt.received)
        if save or signal_number:
            self._save()
        if signal_number:
            self._saver.wait()
            self._interrupt.stop(signal_number)

    def _check_chance(self) -> None:
        """Whether more images were right than three standard deviations over guessing."""
        _, wrong, _, num = self._guarded.tolist()
        self._guarded = self._zeros()
        chance = 1 / len(self._train_set.classes)
        most = num * chance + 3 * math.sqrt(num * chance * (1 - chance))
        if chance < 1 and num - wrong <= most:
            raise self._diverged(
                f"top-1 error {100 * wrong / num:.2f} % in the last {self._machine.chance_steps} "
                "steps, as by guessing", f"below {100 * (1 - most / num):.2f} %",
            )  # fmt: skip

    def _diverged(self, got: str, expected: str) -> DivergenceError:
        return DivergenceError(
            f"step {self._step}", got, expected,
            f"try a lower --learning-rate; the last good state, if any, is {self._run.last}",
        )  # fmt: skip

    def _save(self) -> None:
        # A bad last step leaves a finite loss behind it: only the weights tell.
        if not self._learner.is_finite:
            raise self._diverged("the weights are no longer finite", "finite numbers")
        self._saved_at = time.monotonic()
        if self._processes.is_first:
            training: dict[str, Any] = {
                **self._learner.state(),
                "epoch": self._epoch,
                "batch": self._batch,
                "totals": self._totals,
                "guarded": self._guarded,
            }
            self._saver.save(self._checkpoint(training), self._run.last)

    def _checkpoint(self, training: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            model=self._learner.model.config,
            state_dict=self._learner.model.state_dict(),
            classes=list(self._train_set.classes),
            preprocess=self._recipe.preprocess,
            setting=self._recipe.setting,
            epoch=self._epoch,
            step=self._step,
            recipe=self._recipe.to_json(),
            training=training,
        )

    def _finish_epoch(self, seconds: float, num_images: float) -> None:
        """Evaluate the file just written and enter its errors."""
        candidates = self._processes.from_first(self._candidates)
        row = {
            "epoch": self._epoch,
            "step": self._step,
            "learning_rate": self._recipe.learning_rate_at(max(self._step, 1)),
            **self._means(),
            **self._evaluate(candidates),
            "images_per_s": num_images / seconds,
        }
        if self._processes.is_first:
            self._run.finish_epoch(row, candidates)
        self._log_epoch(row, seconds)

    def _candidates(self) -> dict[str, Checkpoint]:
        """The networks in the file: the weights, and their average where the recipe has one."""
        written = Checkpoint.load(self._run.last)
        raw = dataclasses.replace(written, training={})
        if "ema" not in written.training:
            return {"": raw}
        return {"": raw, "ema_": dataclasses.replace(raw, state_dict=written.training["ema"])}

    def _evaluate(self, candidates: dict[str, Checkpoint]) -> dict[str, float]:
        """Errors of each in percent, every image counted once, by one of the processes."""
        mine = share(self._val_set, self._processes.rank, self._processes.size)
        device = str(self._device)
        with self._interrupt.at_once():
            ledgers = classify_part(
                [TorchRunner(checkpoint, device) for checkpoint in candidates.values()], mine,
                self._recipe.preprocess, bad_images=self._machine.bad_images,
                title=f"epoch {self._epoch}/{self._recipe.epochs} evaluation",
            )  # fmt: skip
            counts = [self._processes.sum(_wrong(ledger)).tolist() for ledger in ledgers]
        num = counts[0][0]
        if not num:
            raise DataError(self._val_set.root, "no image could be read", "at least one")
        errors: dict[str, float] = {}
        for name, (_, top1, top5) in zip(candidates, counts, strict=True):
            errors[f"{name}val_top1_error"] = 100 * top1 / num
            errors[f"{name}val_top5_error"] = 100 * top5 / num
        return {**errors, "num_val_images": num}

    def _log_epoch(self, row: dict[str, float], seconds: float) -> None:
        left = tqdm.format_interval(seconds * (self._recipe.epochs - self._epoch))
        logger.info(
            "epoch %*d/%d  lr %.5f  train: loss %.3f  top-1 %6.3f  top-5 %6.3f %%  "
            "val: top-1 %6.3f  top-5 %6.3f %%  %.0f images/s  %s left",
            len(str(self._recipe.epochs)), self._epoch, self._recipe.epochs, row["learning_rate"],
            row["train_loss"], row["train_top1_error"], row["train_top5_error"],
            row["val_top1_error"], row["val_top5_error"], row["images_per_s"], left,
        )  # fmt: skip


def _wrong(ledger: Ledger) -> Tensor:
    """Images, wrong in top 1, wrong in top 5."""
    right = ledger.top5 == ledger.labels[:, None]
    return torch.tensor([len(ledger), int((~right[:, 0]).sum()), int((~right.any(axis=1)).sum())])
