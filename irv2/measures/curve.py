"""The errors of a training run, epoch by epoch, as its metrics.jsonl has them."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from irv2.errors import DataError

METRICS = "metrics.jsonl"
HEAD = "head"  # in a fine-tuning's folder: the run of its first phase
ERRORS = {
    "epoch",
    *(f"{split}_{top}_error" for split in ("train", "val") for top in ("top1", "top5")),
}
AVERAGED = {"ema_val_top1_error", "ema_val_top5_error"}  # drawn if every row has them


class Curve(NamedTuple):
    """The errors of one run in percent: a row per epoch, with the keys of metrics.jsonl.

    The first `head_epochs` rows are of a fine-tuning's first phase, the last layer alone.
    """

    name: str
    rows: list[dict[str, float]]
    head_epochs: int = 0


def read_run_curve(run: Path) -> Curve:
    """Read the curve of a run's folder, without rows if no epoch is finished."""
    return joined(run.name, read_metrics(run / HEAD / METRICS), read_metrics(run / METRICS))


def joined(name: str, head: list[dict[str, float]], rows: list[dict[str, float]]) -> Curve:
    """Count the epochs of `rows` on from those of a fine-tuning's first phase, `head`."""
    num = int(head[-1]["epoch"]) if head else 0
    return Curve(name, [*head, *({**row, "epoch": num + row["epoch"]} for row in rows)], num)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a metrics.jsonl, one per epoch; none if there is no file.

    Raises DataError for a malformed line.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            row = json.loads(line)
        except ValueError as error:  # bad JSON or bad UTF-8
            raise DataError(path, f"line {number} is not JSON", "one object per epoch") from error
        if not isinstance(row, dict) or not row.keys() >= ERRORS:
            raise DataError(path, f"line {number} lacks an epoch's errors", "a run's metrics")
        for name, value in row.items():
            if not isinstance(value, int | float) or abs(value) > sys.float_info.max:
                raise DataError(path, f"line {number}: {name} is {value!r:.60}", "a number")
        rows.append(row)
    return rows
