"""The training loop: steps, checkpoints, evaluation of the file just written.

Source: fb.resnet.torch's train.lua with the fork's learning rate per iteration. Resuming is exact:
the order of images and their augmentation are functions of the seed, the learning rate of the
step, and the checkpoint holds the optimiser's momentum, torch's random state and the position.
"""

import dataclasses
import logging
import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from irv2.checkpoint import Checkpoint
from irv2.dataset import BadImages, ImageFolder
from irv2.errors import Irv2Error
from irv2.evaluate import classify_folder
from irv2.model import InceptionResNetV2, initialize
from irv2.progress import Progress
from irv2.runners.torch import TorchRunner, use_full_float32
from train.augment import apply_color
from train.batch_norm import group_batch_norm
from train.interrupt import Interrupt
from train.loader import Batch, batch_indices, load_epoch
from train.run import Run
from train.settings import Recipe

logger = logging.getLogger(__name__)

SHOW_EVERY_STEPS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What does not decide the weights: where and how it is computed."""

    device: str = "cpu"
    workers: int = 0
    save_minutes: float = 10.0
    bad_images: BadImages = "error"


class DivergenceError(Irv2Error):
    """The loss is no longer a number."""


class Trainer:
    """Trains one run from its start or from a checkpoint to its last epoch."""

    def __init__(
        self, run: Run, recipe: Recipe, train_set: ImageFolder, val_set: ImageFolder,
        machine: Machine,
    ) -> None:  # fmt: skip
        self._run, self._recipe, self._machine = run, recipe, machine
        self._train_set, self._val_set = train_set, val_set
        self._device = torch.device(machine.device)
        self._interrupt = Interrupt()
        use_full_float32()
        torch.manual_seed(recipe.seed)
        config = recipe.model_config(len(train_set.classes))
        self._model = InceptionResNetV2(config)
        initialize(self._model)
        group_batch_norm(self._model, recipe.bn_groups)
        self._model.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum,
            dampening=0, weight_decay=recipe.weight_decay, nesterov=True,
        )  # fmt: skip
        self._epoch = 1  # the epoch being trained
        self._batch = 0  # its next batch
        self._step = 0  # optimiser steps so far, over the whole run
        self._totals = torch.zeros(4, dtype=torch.float64)  # loss, top-1, top-5 wrong, images
        self._saved_at = time.monotonic()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on exactly where `checkpoint` was written."""
        state = checkpoint.training
        self._model.load_state_dict(checkpoint.state_dict)
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["cpu_rng"])
        if "cuda_rng" in state and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self._device)
        self._epoch, self._batch, self._step = state["epoch"], state["batch"], checkpoint.step
        self._totals = state["totals"]
        if any(row["epoch"] == self._epoch for row in self._run.metrics()):
            self._next_epoch()

    def train(self) -> None:
        """Train to the last epoch. A signal saves and then raises KeyboardInterrupt or Terminated.

        Raises DivergenceError where the loss is not finite; the last checkpoint stays.
        """
        with self._interrupt:
            while self._epoch <= self._recipe.epochs:
                started, images_before = time.monotonic(), self._totals[3].item()
                self._train_epoch()
                seconds = time.monotonic() - started
                self._save()
                self._finish_epoch(seconds, self._totals[3].item() - images_before)
                self._next_epoch()

    def _next_epoch(self) -> None:
        self._epoch, self._batch = self._epoch + 1, 0
        self._totals = torch.zeros_like(self._totals)

    def _train_epoch(self) -> None:
        recipe, machine = self._recipe, self._machine
        num_batches = len(batch_indices(len(self._train_set), recipe, self._epoch))
        self._model.train()
        batches = load_epoch(
            self._train_set, recipe, self._epoch, start=self._batch, workers=machine.workers,
            bad_images=machine.bad_images, device=self._device,
        )  # fmt: skip
        title = f"epoch {self._epoch}/{recipe.epochs}"
        done = min(self._batch * recipe.batch_size, len(self._train_set))
        with Progress(title, len(self._train_set), "images", done) as bar:
            for number, batch in batches:
                self._step_on(batch)
                self._batch = number + 1
                if number % SHOW_EVERY_STEPS == 0 or self._batch == num_batches:
                    self._show(bar, len(batch.labels))
                else:
                    bar.advance(len(batch.labels))
                self._save_if_due()
        self._batch = num_batches

    def _step_on(self, batch: Batch) -> None:
        """One optimiser step over one batch; the loss is the mean over its images."""
        self._step += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate_at(self._step)
        images, matrices, flips, labels = (
            part.to(self._device, non_blocking=True) for part in batch
        )
        logits: Tensor = self._model(apply_color(images, matrices, flips))
        loss = F.cross_entropy(logits, labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._totals = self._totals.to(self._device) + _count(logits.detach(), labels, loss)

    def _show(self, bar: Progress, num_images: int) -> None:
        """Show where the epoch stands; this is where a loss that is no number is noticed."""
        means = self._means()
        if not math.isfinite(means["train_loss"]):
            raise self._diverged(f"the loss is {means['train_loss']}")
        bar.advance(
            num_images,
            loss=f"{means['train_loss']:.3f}",
            top1=f"{means['train_top1_error']:.1f} %",
            top5=f"{means['train_top5_error']:.1f} %",
        )

    def _means(self) -> dict[str, float]:
        loss, top1, top5, num_images = self._totals.tolist()
        return {
            "train_loss": loss / num_images,
            "train_top1_error": 100 * top1 / num_images,
            "train_top5_error": 100 * top5 / num_images,
        }

    def _save_if_due(self) -> None:
        due = time.monotonic() - self._saved_at > 60 * self._machine.save_minutes
        if due or self._interrupt.received:
            self._save()
        self._interrupt.check()

    def _diverged(self, got: str) -> DivergenceError:
        return DivergenceError(
            f"step {self._step}", got, "finite numbers",
            f"try a lower --learning-rate; the last good state, if any, is {self._run.last}",
        )  # fmt: skip

    def _save(self) -> None:
        # A bad last step leaves a finite loss behind it: only the weights tell.
        if not all(bool(parameter.isfinite().all()) for parameter in self._model.parameters()):
            raise self._diverged("the weights are no longer finite")
        training: dict[str, Any] = {
            "optimizer": self._optimizer.state_dict(),
            "cpu_rng": torch.get_rng_state(),
            "epoch": self._epoch,
            "batch": self._batch,
            "totals": self._totals.cpu(),
        }
        if self._device.type == "cuda":
            training["cuda_rng"] = torch.cuda.get_rng_state(self._device)
        self._checkpoint(training).save(self._run.last)
        self._saved_at = time.monotonic()

    def _checkpoint(self, training: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            model=self._model.config,
            state_dict=self._model.state_dict(),
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
        checkpoint = Checkpoint.load(self._run.last)
        title = f"epoch {self._epoch}/{self._recipe.epochs} evaluation"
        runner = TorchRunner(checkpoint, self._machine.device)
        with self._interrupt.at_once():
            [ledger] = classify_folder(
                [runner], self._val_set, checkpoint.preprocess,
                bad_images=self._machine.bad_images, title=title,
            )  # fmt: skip
        errors = ledger.errors()
        row = {
            "epoch": self._epoch,
            "step": self._step,
            "learning_rate": self._recipe.learning_rate_at(max(self._step, 1)),
            **self._means(),
            "val_top1_error": errors["top1_error"],
            "val_top5_error": errors["top5_error"],
            "num_val_images": errors["n"],
            "images_per_s": num_images / seconds,
        }
        best = dataclasses.replace(checkpoint, training={}, metrics=row)
        self._run.finish_epoch(row, best)
        self._log_epoch(row, seconds)

    def _log_epoch(self, row: dict[str, float], seconds: float) -> None:
        left = tqdm.format_interval(seconds * (self._recipe.epochs - self._epoch))
        logger.info(
            "epoch %*d/%d  lr %.5f  train: loss %.3f  top-1 %6.3f  top-5 %6.3f %%  "
            "val: top-1 %6.3f  top-5 %6.3f %%  %.0f images/s  %s left",
            len(str(self._recipe.epochs)), self._epoch, self._recipe.epochs, row["learning_rate"],
            row["train_loss"], row["train_top1_error"], row["train_top5_error"],
            row["val_top1_error"], row["val_top5_error"], row["images_per_s"], left,
        )  # fmt: skip


def _count(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Summed loss, images wrong in top 1 and in top 5, images."""
    top5 = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    num = len(labels)
    return torch.stack([
        loss.detach().double() * num,
        (~top5[:, 0]).sum().double(),
        (~top5.any(dim=1)).sum().double(),
        torch.tensor(float(num), dtype=torch.float64, device=logits.device),
    ])  # fmt: skip
