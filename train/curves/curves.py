"""Training curves in the original's style: from runs, from its own logs, and its published one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from irv2.errors import DataError
from irv2.measures.curve import AVERAGED, HEAD, METRICS, Curve, joined, read_metrics
from irv2.system.files import write_atomically
from irv2.train.curves.torch7_log import read_torch7_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Epoch, top-1 and top-5 of setting 1 on ImageNet, read off the original's picture to about +-0.5.
_PUBLISHED = (
    (1, 81, 59), (5, 51, 26), (10, 40.5, 17), (15, 36, 14), (20, 33, 12), (30, 30, 10),
    (40, 27.7, 9), (50, 26.4, 8.2), (60, 25.5, 7.9), (70, 25, 7.6), (80, 24.6, 7.5),
    (90, 24.4, 7.4),
)  # fmt: skip
_PUBLISHED_SPIKE = (22, 51, 30)  # a single epoch, drawn without a line to it


def read_curve(path: Path) -> Curve:
    """Read the curve of a run's folder, a metrics.jsonl or a Torch7 log.

    Raises DataError if `path` is none of these or no epoch is finished.
    """
    log = path / METRICS if path.is_dir() else path
    name = log.absolute().parent.name if log.name == METRICS else log.stem
    if not log.is_file():
        raise DataError(path, f"no {METRICS} in it", "a run of irv2-train or a Torch7 log")
    with log.open("rb") as file:
        is_json = file.read(64).lstrip().startswith(b"{")
    rows = read_metrics(log) if is_json or log.name == METRICS else read_torch7_log(log)
    if not rows:
        raise DataError(log, "no finished epoch in it", "a run of irv2-train or a Torch7 log")
    head = read_metrics(log.parent / HEAD / METRICS) if log.name == METRICS else []
    return joined(name, head, rows)


def draw_curves(
    curves: Sequence[Curve],
    out: Path,
    *,
    published: bool = False,
    max_error: float = 100.0,
) -> None:
    """Draw errors over epochs, up to `max_error` percent, as a PNG.

    One run has training in red, validation in blue, and green for averaged weights. Several have
    one colour each, with thin training curves. Top-5 is dashed. A dotted line ends the epochs of a
    fine-tuning's first phase.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    if published:
        _draw_published(axes)
    for i, (name, rows, head_epochs) in enumerate(curves):
        if head_epochs:
            is_alone = len(curves) == 1
            axes.axvline(
                head_epochs + 0.5,
                color="purple" if is_alone else f"C{i}",
                linestyle="dotted",
                label="before this line: the last layer alone" if is_alone else None,
            )
        if len(curves) == 1:
            for title, split, color in (
                ("training", "train", "red"),
                ("validation", "val", "blue"),
            ):
                label = legend_label(title, rows[-1], split)
                _draw_errors(axes, rows, split, color, 1.2, label)
            if all(row.keys() >= AVERAGED for row in rows):
                label = legend_label("validation, averaged weights", rows[-1], "ema_val")
                _draw_errors(axes, rows, "ema_val", "green", 1.2, label)
        else:
            _draw_errors(axes, rows, "train", f"C{i}", 0.6, None)
            _draw_errors(axes, rows, "val", f"C{i}", 1.6, legend_label(name, rows[-1], "val"))
    training = "; thin: training" if len(curves) > 1 else ""
    axes.set(xlabel="epoch", ylabel=f"error, %   (dashed: top-5{training})", ylim=(0, max_error))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    write_atomically(out, lambda path: figure.savefig(path, format="png", dpi=100))


def legend_label(name: str, row: dict[str, float], split: str) -> str:
    """A line's text in the legend: top-1 and top-5 error of `split` in the epoch `row`, percent."""
    top1, top5 = row[f"{split}_top1_error"], row[f"{split}_top5_error"]
    shown = name.replace("$", r"\$")  # not a formula
    if shown.startswith("_"):  # matplotlib would hide it
        shown = f" {shown}"
    return f"{shown}: {top1:.2f} / {top5:.2f} % after epoch {row['epoch']:.0f}"


def _draw_errors(
    axes: "Axes",
    rows: list[dict[str, float]],
    split: str,
    color: str,
    width: float,
    label: str | None,
) -> None:
    """Draw top-1 solid and top-5 dashed; without a label they are not in the legend."""
    epochs = [row["epoch"] for row in rows]
    marker = "." if len(rows) < 30 else None
    for top, style in (("top1", "solid"), ("top5", "dashed")):
        errors = [row[f"{split}_{top}_error"] for row in rows]
        axes.plot(
            epochs,
            errors,
            color=color,
            linestyle=style,
            linewidth=width,
            marker=marker,
            markersize=4 * width,
            label=label if top == "top1" else None,
        )


def _draw_published(axes: "Axes") -> None:
    epochs, top1, top5 = zip(*_PUBLISHED, strict=True)
    label = "published, setting 1 on ImageNet: 24.41 / 7.41 % after epoch 90"
    for line, style, shown in ((top1, "solid", label), (top5, "dashed", None)):
        axes.plot(
            epochs,
            line,
            color="black",
            linestyle=style,
            linewidth=1,
            marker="x",
            markersize=4,
            label=shown,
        )
    epoch, *errors = _PUBLISHED_SPIKE
    axes.plot([epoch] * 2, errors, color="black", linestyle="none", marker="x", markersize=4)
