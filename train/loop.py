"""The training loop: epochs of steps, checkpoints, evaluation.

Source: fb.resnet.torch's train.lua with the fork's learning rate per iteration. Resuming is exact:
the order of images, their augmentation, the learning rate and dropout are functions of seed and
step; the checkpoint holds the optimiser's momentum and the position.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import BadImages, ImageFolder
from irv2.errors import DataError, EngineError, ImageError, Irv2Error, UsageError
from irv2.evaluate import EvaluationOptions
from irv2.manifest import Source
from irv2.model.build import Network
from irv2.runners.torch import TorchRunner
from irv2.system.progress import Progress
from irv2.train.data.features import Features
from irv2.train.data.loader import Batch, load_epoch, num_batches
from irv2.train.divergence import DivergenceError, Guard
from irv2.train.learner.memory import peak_memory_mib
from irv2.train.learner.step import Computation, Learner, balanced_weights
from irv2.train.processes import Processes
from irv2.train.run.folder import Run
from irv2.train.run.saver import Saver
from irv2.train.settings import Recipe
from irv2.train.signals import Interrupt
from irv2.train.validation import count_wrong

logger = logging.getLogger(__name__)

SHOW_EVERY_STEPS = 10
SAVE_AFTER = 30  # times as long as the last save took: epochs of a head are shorter than that


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything about a run that does not decide its weights.

    `workers` processes decode for training (0: the trainer itself), `threads` for evaluation. The
    run stops after `chance_steps` steps no better than chance; 0: never. It ends, evaluated and
    saved, within `time_budget_minutes` of training, over all its starts.
    """

    computation: Computation
    workers: int = 0
    threads: int = 1
    save_minutes: float = 10.0
    chance_steps: int = 5000
    time_budget_minutes: float | None = None
    bad_images: BadImages = "error"


class Trainer:
    """Trains one run from its start or from a checkpoint to its last epoch."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        data: tuple[ImageFolder, ImageFolder],
        model: Network,
        machine: Machine,
        processes: Processes,
        begun_from: Source | None = None,
    ) -> None:
        self._run, self._recipe, self._machine, self._processes = run, recipe, machine, processes
        self._train_set, self._val_set = data
        self._device = torch.device(machine.computation.device)
        weights = None
        if recipe.class_weights == "balanced":
            weights = balanced_weights(self._train_set.labels, len(self._train_set.classes))
        self._learner = Learner(model, recipe, machine.computation, processes, weights)
        self._interrupt = Interrupt(is_repeated=processes.size > 1)
        self._saver = Saver()
        self._features: Features | None = None
        self._begun_from = begun_from  # the checkpoint of --init-from
        self._guard = Guard(run, recipe, len(data[0].classes), machine.chance_steps)
        self._epoch = 1  # the epoch being trained
        self._batch = 0  # its next batch
        self._step = 0  # optimiser steps so far, over the whole run
        self._totals = self._zeros()  # of the epoch: loss, wrong in top 1 and top 5, images
        self._waited_s = 0.0  # waiting for images, in this epoch
        self._saved_at = self._began_at = time.monotonic()
        self._saved_step = 0  # in this process
        self._evaluation_s = 0.0  # how long the last evaluation took
        self._is_out_of_time = False

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where `checkpoint` was written."""
        state, self._begun_from = checkpoint.training, checkpoint.begun_from
        self._learner.load(checkpoint)
        self._epoch, self._batch, self._step = state["epoch"], state["batch"], checkpoint.step
        self._totals = state["totals"].to(self._device)
        self._began_at -= state.get("seconds", 0.0)
        self._guard.since = state["guarded"].to(self._device)
        finished = self._processes.from_first(self._run.metrics)
        if any(row["epoch"] == self._epoch for row in finished):
            self._next_epoch()

    def train(self) -> None:
        """Train to the last epoch. On a signal, save, then raise KeyboardInterrupt or Terminated.

        Raises, after saving, ImageError for an unreadable image and EngineError for a lost worker.
        Raises DivergenceError if the loss is not finite or nothing is learnt, and EngineError if
        a step can't be computed; then the last checkpoint stays as it is.
        """
        try:
            with self._interrupt, self._saver:
                if self._recipe.trained == "head":
                    self._features = self._compute_features()
                while not self._recipe.is_over(self._processes.from_first(self._run.metrics)):
                    self._train_and_evaluate()
                    self._next_epoch()
                self._processes.from_first(self._run.draw)
        except DivergenceError as error:  # the same in all processes
            self._processes.fail(error)

    def _compute_features(self) -> Features:
        """Compute what the frozen network gives for every image, or find it on file."""
        machine, data = self._machine, (self._train_set, self._val_set)
        network = self._learner.model
        features = Features(self._run.path, self._recipe, data, network, self._device)
        with self._interrupt.at_once():
            features.compute(
                workers=machine.workers,
                threads=machine.threads,
                bad_images=machine.bad_images,
                before_file=self._require_time,
            )
        return features

    def _require_time(self) -> None:
        """Raise UsageError if the time is up while there are no weights, but features to keep."""
        if self._is_time_up():
            raise UsageError(
                "--time-budget",
                f"{self._machine.time_budget_minutes:g} minutes are up, and features of images "
                "are still missing: there are no weights yet",
                "time for them and for an epoch",
                "the same command goes on from here",
            )

    def _train_and_evaluate(self) -> None:
        started, images_before = time.monotonic(), self._totals[3].item()
        self._waited_s = 0.0
        self._train_epoch()
        seconds = time.monotonic() - started
        is_saved = self._processes.from_first(lambda: self._is_save_worthwhile)
        if is_saved:
            self._save_now()
        self._finish_epoch(seconds, self._totals[3].item() - images_before, is_saved)

    def _zeros(self) -> Tensor:
        return torch.zeros(4, dtype=torch.float64, device=self._device)

    def _next_epoch(self) -> None:
        self._epoch, self._batch, self._totals = self._epoch + 1, 0, self._zeros()

    def _train_epoch(self) -> None:
        recipe = self._recipe
        last = num_batches(len(self._train_set), recipe)
        self._learner.train()
        loading = self._load_epoch()
        title = f"epoch {self._epoch}/{recipe.epochs}"
        done = min(self._batch * recipe.batch_size, len(self._train_set))
        progress = Progress(title, len(self._train_set), "images", done)
        with closing(loading) as batches, progress as bar:
            while (found := self._next(batches)) is not None:
                number, batch, num_images = found
                if not num_images:  # none of this batch could be read
                    continue
                self._step += 1
                totals = self._learner.step(self._step, batch, num_images)
                self._totals = self._totals + totals
                self._batch = number + 1
                is_shown = number % SHOW_EVERY_STEPS == 0 or self._batch == last
                bar.advance(num_images, **(self._shown() if is_shown else {}))
                self._guard.check_step(self._step, totals)
                self._after_step()
                if self._is_out_of_time:
                    logger.warning(
                        "%s: the time is up after %d of %d steps", title, number + 1, last
                    )
                    break
        if not self._totals[3]:
            place = self._train_set.place
            self._processes.fail(DataError(place, "no image could be read", "at least one"))
        self._batch = last

    def _load_epoch(self) -> Generator[tuple[int, Batch], None, None]:
        """Load this process's batches of the epoch, of images or of their features."""
        share: Any = {"rank": self._processes.rank, "world_size": self._processes.size}
        if self._features is not None:
            return self._features.load_epoch(self._epoch, start=self._batch, **share)
        return load_epoch(
            self._train_set,
            self._recipe,
            self._epoch,
            start=self._batch,
            workers=self._machine.workers,
            bad_images=self._machine.bad_images,
            device=self._device,
            **share,
        )

    def _next(self, batches: Iterator[tuple[int, Batch]]) -> tuple[int, Batch, int] | None:
        """Return the next batch: number, our share, images over all processes; None at the end.

        An unreadable image or a lost worker in any process ends all, once the state is saved.
        """
        asked, failure, num_images = time.monotonic(), None, 0
        try:
            number, batch = next(batches)
            num_images = len(batch.labels)
        except StopIteration:
            return None
        except (ImageError, EngineError) as error:
            failure = error
        self._waited_s += time.monotonic() - asked
        num_images, num_failures = self._processes.totals(num_images, int(bool(failure)))
        if num_failures:
            self._save_now()
            raise failure or SystemExit(Irv2Error.exit_code)
        return number, batch, num_images

    def _shown(self) -> dict[str, str]:
        """Return the epoch's means so far for display; raises DivergenceError for a bad loss."""
        means = self._means()
        loss = means["train_loss"]
        self._guard.check_finite(self._step, f"the loss is {loss},", math.isfinite(loss))
        return {
            "loss": f"{loss:.3f}",
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
        """Save if it is due or any process got a signal, and then stop for the signal.

        Also find out whether the time is up, which ends the epoch.
        """
        if self._step == 1:
            logger.info("peak memory after step 1: %.0f MiB", peak_memory_mib(self._device))
        is_due = time.monotonic() - self._saved_at > 60 * self._machine.save_minutes
        save, has_failed, is_up, signal_number = self._processes.largest(
            int(is_due),
            int(self._saver.has_failed),
            int(self._is_time_up()),
            self._interrupt.received,
        )
        self._is_out_of_time = bool(is_up)
        if has_failed:
            self._wait_for_save()
        if save or signal_number:
            self._save()
        if signal_number:
            self._wait_for_save()
            self._interrupt.stop(signal_number)

    def _is_time_up(self, ahead_s: float = 0.0) -> bool:
        """Whether the time budget, if any, leaves less than an evaluation after `ahead_s`."""
        if self._machine.time_budget_minutes is None:
            return False
        elapsed = time.monotonic() - self._began_at
        return elapsed + ahead_s + self._evaluation_s >= 60 * self._machine.time_budget_minutes

    @property
    def _is_save_worthwhile(self) -> bool:
        """Whether to save at the end of an epoch: if saving takes little of the time.

        What is not saved is trained again, the same, by a run that was killed. An epoch whose last
        step is saved counts as finished with its row, and so needs its best weights on file.
        """
        if self._saved_step == self._step:
            return True
        since_s = time.monotonic() - self._saved_at
        return since_s > min(60 * self._machine.save_minutes, SAVE_AFTER * self._saver.took_s)

    def _save_now(self) -> None:
        """Save, and wait until the file is complete."""
        self._save()
        self._wait_for_save()

    def _save(self) -> None:
        # Check more than the loss: it does not show a bad last step, and a step that fp16 skips may
        # leave statistics that are not finite.
        is_finite = self._learner.is_finite and bool(self._totals.isfinite().all())
        [is_bad] = self._processes.largest(int(not is_finite))
        self._guard.check_finite(self._step, "weights, statistics or loss are", not is_bad)
        self._saved_at, self._saved_step = time.monotonic(), self._step
        self._processes.from_first(self._write)

    def _write(self) -> None:
        self._run.write_best()  # first: a resumed run has the best of its finished epochs
        self._saver.save(self._checkpoint(), self._run.last)

    def _wait_for_save(self) -> None:
        """Make all processes wait: torchrun kills the others once one has ended."""
        self._processes.from_first(self._saver.wait)

    def _checkpoint(self) -> Checkpoint:
        training: dict[str, Any] = {
            **self._learner.state(),
            "epoch": self._epoch,
            "batch": self._batch,
            "totals": self._totals,
            "guarded": self._guard.since,
        }
        if self._machine.time_budget_minutes is not None:
            training["seconds"] = time.monotonic() - self._began_at
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
            begun_from=self._begun_from,
        )

    def _finish_epoch(self, seconds: float, num_images: float, is_saved: bool) -> None:
        """Evaluate the file just written, or the weights in memory, and record the errors."""
        began_at = time.monotonic()
        candidates = self._processes.from_first(lambda: self._candidates(is_saved))
        row = {
            "epoch": self._epoch,
            "step": self._step,
            "learning_rate": self._recipe.learning_rate_at(max(self._step, 1)),
            **self._means(),
            **self._evaluate(candidates),
            "images_per_s": num_images / seconds,
            # An upper bound on a GPU, which goes on with queued work meanwhile.
            "data_wait_percent": 100 * self._waited_s / seconds,
        }
        self._evaluation_s = time.monotonic() - began_at
        if self._is_out_of_time or self._is_time_up(ahead_s=seconds / 10):
            row["out_of_time"] = 1
        rows = self._processes.from_first(self._run.metrics)
        if not is_saved and self._recipe.is_over([*rows, row]):
            self._save_now()
            is_saved = True
        self._processes.from_first(lambda: self._run.finish_epoch(row, candidates, is_saved))
        self._log_epoch(row, seconds)

    def _candidates(self, is_saved: bool) -> dict[str, Checkpoint]:
        """Return the networks in file or memory: the weights (""), and any average ("ema_")."""
        found = Checkpoint.load(self._run.last) if is_saved else self._checkpoint()
        raw = dataclasses.replace(found, training={})
        if "ema" not in found.training:
            return {"": raw}
        return {"": raw, "ema_": dataclasses.replace(raw, state_dict=found.training["ema"])}

    def _evaluate(self, candidates: dict[str, Checkpoint]) -> dict[str, float]:
        """Measure each candidate's errors in percent; every image is counted by one process."""
        counts = self._count_wrong(list(candidates.values()))
        num = counts[0][0]
        errors: dict[str, float] = {}
        for name, (_, top1, top5) in zip(candidates, counts, strict=True):
            errors[f"{name}val_top1_error"] = 100 * top1 / num
            errors[f"{name}val_top5_error"] = 100 * top5 / num
        return {**errors, "num_val_images": num}

    def _count_wrong(self, candidates: list[Checkpoint]) -> list[list[int]]:
        """Count per candidate: images, wrong in top 1, wrong in top 5."""
        if self._features is not None:
            names = ("classifier.weight", "classifier.bias")
            weights = [[each.state_dict[name] for name in names] for each in candidates]
            return [list(self._features.count_wrong(*pair)) for pair in weights]
        device = str(self._device)
        runners = [TorchRunner(checkpoint, device) for checkpoint in candidates]
        with self._interrupt.at_once():
            return count_wrong(
                self._processes,
                runners,
                self._val_set,
                self._recipe.preprocess,
                bad_images=self._machine.bad_images,
                title=f"epoch {self._epoch}/{self._recipe.epochs} evaluation",
                options=EvaluationOptions(workers=self._machine.threads),
            )

    def _log_epoch(self, row: dict[str, float], seconds: float) -> None:
        left = tqdm.format_interval(seconds * (self._recipe.epochs - self._epoch))
        errors = {"train": "train", "val": "val", "ema": "ema_val"}
        shown = "  ".join(
            f"{name}: "
            + f"loss {row['train_loss']:.3f}  " * (name == "train")
            + f"top-1 {row[f'{key}_top1_error']:6.3f}  top-5 {row[f'{key}_top5_error']:6.3f} %"
            for name, key in errors.items()
            if f"{key}_top1_error" in row
        )
        logger.info(
            "epoch %*d/%d  lr %.5f  %s  %.0f images/s  %.1f %% data wait  %s left",
            len(str(self._recipe.epochs)),
            self._epoch,
            self._recipe.epochs,
            row["learning_rate"],
            shown,
            row["images_per_s"],
            row["data_wait_percent"],
            left,
        )
