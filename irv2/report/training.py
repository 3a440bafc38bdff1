"""A run's chapter: its curves, its best epoch, how it was made."""

from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

from irv2.measures.curve import AVERAGED, Curve
from irv2.report.chart import Line, line_chart
from irv2.report.html import chapter, details, facts, lacking, section, short_facts, table, tag
from irv2.report.sources import Run

_NAMES = {
    "train": ("training", "train"),
    "val": ("validation", "val"),
    "ema_val": ("validation, averaged weights", "ema"),
}
_COLUMNS = {
    "epoch": "epoch",
    "train_loss": "training loss",
    "train_top1_error": "training top-1, %",
    "train_top5_error": "training top-5, %",
    "val_top1_error": "validation top-1, %",
    "val_top5_error": "validation top-5, %",
    "ema_val_top1_error": "averaged top-1, %",
    "ema_val_top5_error": "averaged top-5, %",
    "learning_rate": "learning rate",
    "images_per_s": "images/s",
}

_DATA = {
    "num_train": "training images",
    "num_val": "validation images",
    "num_classes": "classes",
    "files_sha256": "sha256 of the names of files",
    "labels_sha256": "sha256 of classes and labels",
}


def training_chapter(run: Run, is_published: bool, id_: str) -> Element:
    """Say how the run went and what it was made of.

    `is_published`: a bundle of the report was made from it, and has its answers.
    """
    rows = run.curve.rows
    if rows:
        parts = [tag("p", headline(run)), *_charts(run.curve), _epochs(rows)]
    else:
        parts = [lacking("Training curves: not measured, no epoch of this run is finished.")]
    if not is_published:
        text = (
            "Classes, pictures and verdicts: not measured, no bundle here was made from this run."
        )
        parts.append(lacking(text))
    return chapter(f"Run {run.name}", *parts, *_made(run), id_=id_)


def headline(run: Run) -> str:
    """The run in one sentence; empty if no epoch is finished."""
    if not run.curve.rows:
        return ""
    row = best_row(run.curve)
    number = f" of {row['num_val_images']:.0f} images" if "num_val_images" in row else ""
    return (
        f"Lowest validation error after epoch {row['epoch']:.0f} of {len(run.curve.rows)}: top-1 "
        f"{row['val_top1_error']:.2f} %, top-5 {row['val_top5_error']:.2f} %{number}. The epoch "
        "was chosen on these images, which flatters it a little."
    )


def best_row(curve: Curve) -> dict[str, float]:
    """The first epoch with the lowest top-1 error, in a fine-tuning of its second phase."""
    num_head = curve.head_epochs
    rows = [row for row in curve.rows if row["epoch"] > num_head] or curve.rows
    return min(rows, key=lambda row: row["val_top1_error"])


def speed(run: Run) -> str:
    """Images per second of the last epoch, as text; empty if no epoch says it."""
    rates = [row["images_per_s"] for row in run.curve.rows if "images_per_s" in row]
    return f"{rates[-1]:.1f}" if rates else ""


def _charts(curve: Curve) -> Iterator[Element]:
    rows, head = curve.rows, curve.head_epochs
    divider = head + 0.5 if head else None
    splits = [
        name for name in _NAMES if name != "ema_val" or all(r.keys() >= AVERAGED for r in rows)
    ]
    lines = [
        Line(
            f"{_NAMES[split][0]}, {name}",
            f"{_NAMES[split][1]} {style}",
            [(row["epoch"], row[f"{split}_{top}_error"]) for row in rows],
        )
        for split in splits
        for top, name, style in (("top1", "top-1", "solid"), ("top5", "top-5", "dashed"))
    ]
    yield line_chart("Errors over epochs", "percent", lines, divider)
    if divider is not None:
        yield tag("p", f"Up to the dotted line, after epoch {head}, the last layer alone learnt.")
    if all("train_loss" in row for row in rows):
        loss = Line("training loss", "train solid", [(r["epoch"], r["train_loss"]) for r in rows])
        yield line_chart("Training loss over epochs", "cross entropy", [loss], divider)


def _epochs(rows: list[dict[str, float]]) -> Element:
    shown = [key for key in _COLUMNS if any(key in row for row in rows)]
    cells = [[f"{row[key]:.5g}" if key in row else "-" for key in shown] for row in rows]
    headers = [_COLUMNS[key] for key in shown]
    return details("Every epoch", table("Every epoch", headers, cells, numbers=range(len(shown))))


def _made(run: Run) -> Iterator[Element]:
    if not run.config:
        yield lacking("Recipe, data and versions: not recorded, the folder has no config.json.")
        return
    recipe, data, machine = (run.config.get(part, {}) for part in ("recipe", "data", "machine"))
    shown = [(_words(key), _plain(value)) for key, value in recipe.items() if value != ""]
    yield section(3, "Recipe", short_facts(shown))
    rows = [("command", str(machine.get("command", "not recorded")))]
    rows += [(_DATA.get(key, _words(key)), _plain(value)) for key, value in data.items()]
    rows += [(_words(key), _plain(value)) for key, value in _flat(machine.get("computation", {}))]
    rows += [(f"version of {key}", _plain(v)) for key, v in _flat(machine.get("versions", {}))]
    rows += [(f"sha256 of {file}", sha256) for file, sha256 in run.checkpoints.items()]
    rows.append(("images/s, last epoch", speed(run) or "not measured"))
    yield section(3, "Images and machine", facts(f"What {run.name} was made of", rows))


def _words(key: str) -> str:
    return key.replace("_", " ")


def _flat(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
