"""A run's folder: config.json, last.pt, best.pt, metrics.jsonl, curves.png; starting and resuming.

`last.pt` is everything needed to resume. An epoch counts as finished when its line is in
metrics.jsonl, which is written last: a run killed in between evaluates `last.pt` again. Short
epochs share a save: those finished after `last.pt` are trained again, and their lines dropped.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from irv2.checkpoint import Checkpoint
from irv2.errors import CheckpointError, DataError, UsageError
from irv2.measures.curve import HEAD, METRICS, read_metrics
from irv2.system.files import explain_full_disk, left_beside, try_lock, write_atomically
from irv2.system.stop import raise_if_stopped
from irv2.train.curves.curves import draw_curves, read_curve
from irv2.train.run import mlflow
from irv2.train.run.tensorboard import FOLDER, write_scalars
from irv2.train.settings import RECIPE_DEFAULTS, shown

logger = logging.getLogger(__name__)

LOCK = ".lock"
CURVES = "curves.png"
DRAW_EVERY_S = 10.0
FILES = ("config.json", "last.pt", "best.pt", "best-ema.pt", METRICS, CURVES, mlflow.STATE)
# What differs where hashes do, which tell people nothing.
HASHED = {
    "files_sha256": "the names of files",
    "labels_sha256": "classes, labels or places in shards",
    "init_sha256": "the checkpoint of --init-from",
}
SCHEDULE = {"epochs", "decay_steps", "warmup_steps", "cosine_steps"}
START_OVER = "put it back, or start over: --out NEW --init-from {best}"


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder and what it was started with."""

    path: Path
    config: dict[str, Any]
    _failed: set[str] = field(default_factory=set, init=False, compare=False, repr=False)
    # The lowest top-1 errors so far, by their names in metrics.jsonl.
    _lowest: dict[str, float] = field(default_factory=dict, init=False, compare=False, repr=False)
    # Their weights, by kind, where the file below is not written yet.
    _best: dict[str, Checkpoint] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def _config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The weights with the lowest top-1 error so far."""
        return self.path / "best.pt"

    @property
    def best_of(self) -> dict[str, Path]:
        """The files of the best weights (""), and of their best average ("ema_")."""
        return {"": self.best, "ema_": self.path / "best-ema.pt"}

    @property
    def begun_recipe(self) -> dict[str, Any] | None:
        """The recipe, as plain values, that the run here began with; None if there is no run.

        Raises DataError if config.json is not a run's.
        """
        if not (self._has_begun and self._config_path.is_file()):
            return None
        recipe: dict[str, Any] = self._found_config()["recipe"]
        return recipe

    @property
    def _has_begun(self) -> bool:
        return self.last.is_file() or (self.path / METRICS).is_file()

    def check(self, must_exist: bool) -> None:
        """Check, without writing, that a run with this config may begin or resume here.

        A run may go on to a later epoch than it was begun for, if all else is the same. Raises
        UsageError if the folder belongs to another recipe or data set, or, with `must_exist`, if
        there is nothing to resume.
        """
        if must_exist and not self.last.is_file():
            raise UsageError("--resume", f"no {self.last}", "a run to resume", "leave out --resume")
        if self._config_path.is_file():
            if self._has_begun:  # the config of a start that failed earlier does not matter
                self._check_same()
        elif self.path.is_dir() and any(not _is_ours(path) for path in self.path.iterdir()):
            raise UsageError(self.path, "holds other files", "a new folder or a run", "pass --out")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and lock others out; raises UsageError if a trainer is at work in it.

        The lock is on a separate file, which is never replaced.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as file:
            if not try_lock(file):
                raise UsageError(
                    self.path,
                    "another irv2-train is at work in it",
                    "one at a time",
                    "wait for it to end or pass another --out",
                )
            for path in _left_over(self.path):
                path.unlink()
            yield

    def start(self) -> Checkpoint | None:
        """Write the config of a new run, or return the checkpoint to resume an old one from.

        Only for the holder of the lock. Raises UsageError if another run has begun meanwhile or
        only the checkpoint is missing, and CheckpointError if the checkpoint is not this run's.
        """
        if not self._has_begun:
            _write(self._config_path, json.dumps(self.config, indent=2) + "\n")
            return None
        self._check_same()
        found = self._found_config()
        if found["recipe"]["epochs"] < self.config["recipe"]["epochs"]:
            found["recipe"] = self.config["recipe"]
            _write(self._config_path, json.dumps(found, indent=2) + "\n")
        if not self.last.is_file():
            got = f"{len(self.metrics())} finished epochs, but no {self.last.name}"
            raise UsageError(self.path, got, "both", START_OVER.format(best=self.best))
        checkpoint = self._load_last()
        self._go_back_to(checkpoint.step)
        for kind, row in self.best_rows().items():
            name = f"{kind}val_top1_error"
            self._lowest[name] = row[name]
        return checkpoint

    def metrics(self) -> list[dict[str, float]]:
        """Read one row per finished epoch; raises DataError for a malformed metrics.jsonl."""
        return read_metrics(self.path / METRICS)

    def best_rows(self) -> dict[str, dict[str, float]]:
        """Read the row that each file of best weights holds; a log line names one that is gone.

        Raises CheckpointError for a file that is damaged or of something else.
        """
        found, rows = {}, self.metrics()
        for kind, path in self.best_of.items():
            name = f"{kind}val_top1_error"
            if path.is_file():
                found[kind] = dict(Checkpoint.load(path).metrics)
                if name not in found[kind]:
                    raise CheckpointError(
                        path, "without this run's errors", "its best weights", "move it away"
                    )
            elif any(name in row for row in rows):
                logger.warning("%s is gone: of later epochs, the best will be kept there", path)
        return found

    def finish_epoch(
        self, row: dict[str, float], candidates: Mapping[str, Checkpoint], is_saved: bool
    ) -> None:
        """Keep each candidate that is better than those before of its kind; then add the row.

        `candidates` are the weights ("") and their average ("ema_"), by the prefix of their errors.
        Write the best ones if last.pt holds the epoch (`is_saved`), else leave that to the next
        save, and keep a copy.
        """
        for kind, candidate in candidates.items():
            name = f"{kind}val_top1_error"
            if row[name] < self._lowest.get(name, math.inf):
                best = replace(candidate, metrics=row)
                self._best[kind] = best if is_saved else copy.deepcopy(best)
                self._lowest[name] = row[name]
        if is_saved:
            self.write_best()
        rows = [*self.metrics(), row]
        self._write_metrics(rows)
        self._try(str(self.path / FOLDER), lambda: write_scalars(self.path, row))
        self._try("MLflow", lambda: mlflow.log_epochs(self.path, self.config["recipe"], rows))
        if self._is_picture_old():
            self.draw()

    def write_best(self) -> None:
        """Write the best weights that are not on file yet.

        Always before an epoch counts as finished for a resumed run, by its row and last.pt.
        """
        for kind, best in self._best.items():
            best.save(self.best_of[kind])
        self._best.clear()

    def draw(self) -> None:
        """Draw the curves of the finished epochs; a failure only logs a warning."""
        picture = self.path / CURVES
        self._try(str(picture), lambda: draw_curves([read_curve(self.path)], picture))

    def _load_last(self) -> Checkpoint:
        way_out = START_OVER.format(best=self.best)
        try:
            checkpoint = Checkpoint.load(self.last)
        except CheckpointError as error:
            raise CheckpointError(error.what, error.got, error.expected, way_out) from error
        recipe = {**RECIPE_DEFAULTS, **checkpoint.recipe}
        differing = _differing(self.config["recipe"], recipe)
        if not checkpoint.training or differing.keys() - {"epochs"}:
            raise CheckpointError(
                self.last, "a checkpoint of something else", "the one that this run wrote", way_out
            )
        return checkpoint

    def _go_back_to(self, step: int) -> None:
        """Drop the epochs that ended after `step`, if an older checkpoint was put back."""
        rows = self.metrics()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            logger.warning(
                "%s is older than %s: epochs after step %d are trained again",
                self.last,
                METRICS,
                step,
            )
            self._write_metrics(kept)

    def _write_metrics(self, rows: list[dict[str, float]]) -> None:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        _write(self.path / METRICS, text)

    def _is_picture_old(self) -> bool:
        """Whether it is time to draw again: a short epoch takes less time than its picture."""
        picture = self.path / CURVES
        return not picture.is_file() or time.time() - picture.stat().st_mtime > DRAW_EVERY_S

    def _try(self, name: str, show: Callable[[], None]) -> None:
        """Show something; what fails in a library is logged once and tried again every epoch."""
        try:
            show()
        except Exception as error:  # which must not stop a training run
            raise_if_stopped()
            if name not in self._failed:
                logger.warning("%s: can't be written (%s); going on", name, error)
            self._failed.add(name)
            logger.debug("because of:", exc_info=error)

    def _check_same(self) -> None:
        found = self._found_config()
        recipe = _differing(self.config["recipe"], found["recipe"])
        is_longer = self.config["recipe"]["epochs"] > found["recipe"]["epochs"]
        if recipe and not (is_longer and recipe.keys() == {"epochs"}):
            way_out = "pass another --out or the same options"
            if is_longer and recipe.keys() <= SCHEDULE:
                way_out = (
                    "its learning rate depends on the number of epochs, so it can't go on: begin "
                    f"another with its weights, --init-from {self.best} --out NEW"
                )
            raise self._other("another recipe", recipe, way_out)
        data = _differing(self.config["data"], found["data"])
        if data:
            way_out = "pass another --out or the same images"
            if self._leaves_out(found):
                way_out = "replace the files that are left out, or pass another --out"
            raise self._other("other images", data, way_out)

    def _other(self, what: str, differing: dict[str, str], way_out: str) -> UsageError:
        got = f"holds a run with {what}: {', '.join(differing.values())}"
        return UsageError(self.path, got, "the same to resume it", way_out)

    def _leaves_out(self, found: dict[str, Any]) -> bool:
        """Whether --bad-images skip may explain why the run began with more images."""
        mine, theirs = self.config["data"], found["data"]
        is_skipping = self.config.get("machine", {}).get("bad_images") == "skip"
        return is_skipping and any(mine[n] < theirs.get(n, 0) for n in ("num_train", "num_val"))

    def _found_config(self) -> dict[str, Any]:
        """Read config.json; raises DataError if it is not a run's."""
        path = self._config_path
        try:
            found = json.loads(path.read_text())
            # Options that did not exist when the run began had their default values.
            recipe = {**RECIPE_DEFAULTS, **found["recipe"]}
            return {**found, "recipe": recipe, "data": dict(found["data"])}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(path, repr(error), "the configuration of a run") from error


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
    """Describe what both have and differs, by its name."""
    return {
        key: f"{key} ({HASHED[key]})"
        if key in HASHED
        else f"{key} {shown(theirs[key])} there and {shown(value)} here"
        for key, value in mine.items()
        if key in theirs and theirs[key] != value
    }


def _write(path: Path, text: str) -> None:
    with explain_full_disk(path):
        write_atomically(path, text.encode())


def _is_ours(path: Path) -> bool:
    """Whether this file may be left from a first start that was killed."""
    return path.name in (LOCK, HEAD) or path in _left_over(path.parent)


def _left_over(folder: Path) -> list[Path]:
    """Return the files that a killed trainer's write_atomically left, not some other program."""
    return [path for name in FILES for path in left_beside(folder / name) if path.is_file()]
