"""Training curves in the original's style, from metrics.jsonl."""

import json
from collections.abc import Sequence
from pathlib import Path

from irv2.bundle import write_atomically
from irv2.errors import DataError

METRICS = "metrics.jsonl"
_DRAWN = {
    "epoch",
    *(f"{split}_{top}_error" for split in ("train", "val") for top in ("top1", "top5")),
}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, one per epoch; none where there is no file.

    Raises DataError for a line that is something else.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(path, f"line {number} is not JSON", "one object per epoch") from error
        if not isinstance(row, dict) or not row.keys() >= _DRAWN:
            raise DataError(path, f"line {number} lacks an epoch's errors", "a run's metrics")
        rows.append(row)
    return rows


def draw_curves(runs: Sequence[tuple[str, list[dict[str, float]]]], out: Path) -> None:
    """Errors over epochs of one or several named runs, as a PNG.

    Training is red and validation blue, top-1 solid and top-5 dashed; several runs differ in
    shade.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, rows) in enumerate(runs):
        epochs = [row["epoch"] for row in rows]
        shade = 1 - 0.6 * i / len(runs)
        for split, color in (("train", "red"), ("val", "blue")):
            for top, style in (("top1", "solid"), ("top5", "dashed")):
                errors = [row[f"{split}_{top}_error"] for row in rows]
                label = f"{name}: {split}, {top.replace('top', 'top-')}".removeprefix(": ")
                axes.plot(epochs, errors, color=color, linestyle=style, alpha=shade, label=label,
                          marker="." if len(rows) < 30 else None)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="error, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(out, lambda beside: figure.savefig(beside, format="png", dpi=100))
