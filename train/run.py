"""A run's folder: config.json, last.pt, best.pt, metrics.jsonl, curves.png, and how it resumes.

`last.pt` is everything needed to go on. An epoch counts as finished when its line is in
metrics.jsonl, which is written last: a run killed in between evaluates `last.pt` again.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from irv2.bundle import write_atomically
from irv2.checkpoint import Checkpoint
from irv2.errors import DataError, UsageError
from train.curves import METRICS, draw_curves, read_metrics
from train.tensorboard import write_scalars


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder and what it was started with."""

    path: Path
    config: dict[str, Any]

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The weights with the lowest top-1 error so far."""
        return self.path / "best.pt"

    @property
    def best_ema(self) -> Path:
        """The average of the weights with the lowest top-1 error so far."""
        return self.path / "best-ema.pt"

    def open(self, must_exist: bool) -> Checkpoint | None:
        """Make the folder or find it; the checkpoint to resume from, if there is one.

        Raises UsageError where the folder belongs to another recipe or data set, or, with
        `must_exist`, where there is nothing to resume.
        """
        config_path = self.path / "config.json"
        if must_exist and not self.last.is_file():
            raise UsageError("--resume", f"no {self.last}", "a run to resume", "leave out --resume")
        if config_path.is_file():
            self._check_same(config_path)
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(self.path, "holds other files", "a new folder or a run", "pass --out")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(config_path, json.dumps(self.config, indent=2).encode() + b"\n")
        return Checkpoint.load(self.last) if self.last.is_file() else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other trainers out of the folder; raises UsageError where one is at work.

        The lock ends with the process, however that ends, and worker processes do not inherit it.
        """
        with (self.path / "config.json").open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(
                    self.path, "another irv2-train is at work in it", "one at a time",
                    "wait for it or pass another --out",
                ) from error  # fmt: skip
            for left_over in self.path.glob(".*.tmp"):  # a killed process was writing it
                left_over.unlink()
            yield

    def metrics(self) -> list[dict[str, float]]:
        """One row per finished epoch."""
        return read_metrics(self.path / METRICS)

    def finish_epoch(self, row: dict[str, float], candidates: Mapping[str, Checkpoint]) -> None:
        """Keep each candidate that is the best of its kind so far; then add the row.

        `candidates` are the weights ("") and their average ("ema_"); so begin their errors' names.
        """
        rows = self.metrics()
        for kind, path in (("", self.best), ("ema_", self.best_ema)):
            name = f"{kind}val_top1_error"
            if kind in candidates and all(row[name] < other[name] for other in rows):
                replace(candidates[kind], metrics=row).save(path)
        rows.append(row)
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_atomically(self.path / METRICS, text.encode())
        draw_curves([("", rows)], self.path / "curves.png")
        write_scalars(self.path, row)

    def _check_same(self, config_path: Path) -> None:
        try:
            found = json.loads(config_path.read_text())
        except json.JSONDecodeError as error:
            raise DataError(config_path, str(error), "the configuration of a run") from error
        for part, what in (("recipe", "another recipe"), ("data", "other images")):
            mine, theirs = self.config[part], found.get(part, {})
            differing = [
                f"{key} {theirs.get(key)} there and {value} here"
                for key, value in mine.items()
                if theirs.get(key) != value
            ]
            if differing:
                raise UsageError(
                    self.path, f"holds a run with {what}: {', '.join(differing)}",
                    "the same to resume it", "pass another --out or the same options",
                )  # fmt: skip
