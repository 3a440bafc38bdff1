"""The picture of an evaluation: confusion matrix and reliability plot."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from irv2.measures.calibration import Calibration
from irv2.measures.classes import Confusion
from irv2.measures.evaluation import Evaluation
from irv2.system.files import write_atomically
from irv2.system.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAMES = 60  # classes whose names are written at the matrix
MAX_COUNTS = 20  # classes whose counts are written into it
INCHES_PER_CLASS = 0.28


def draw_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write a PNG."""
    num_named = min(len(evaluation.classes), MAX_NAMES)
    side = max(5.0, 2 + INCHES_PER_CLASS * num_named)
    figure = Figure(figsize=(side + 6, max(5.5, side)), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(side, 5), height_ratios=(3, 1))
    _draw_matrix(figure.add_subplot(grid[:, 0]), evaluation.confusion)
    reliability = figure.add_subplot(grid[0, 1])
    _draw_reliability(reliability, evaluation.calibration)
    histogram = figure.add_subplot(grid[1, 1], sharex=reliability)
    _draw_histogram(histogram, evaluation.calibration)
    figure.suptitle(evaluation.headline(), parse_math=False)
    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=100))


def _draw_matrix(axes: "Axes", confusion: Confusion) -> None:
    """Each row is a label; colours are shares of its images, numbers are images."""
    counts = confusion.counts
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="% of the label's images", shrink=0.7)
    num = len(confusion.classes)
    if num <= MAX_NAMES:
        names = [one_line(name) for name in confusion.classes]
        rows = [f"{name} ({n})" for name, n in zip(names, counts.sum(axis=1), strict=True)]
        axes.set_xticks(range(num), names, rotation=90, fontsize=8, parse_math=False)
        axes.set_yticks(range(num), rows, fontsize=8, parse_math=False)
    if num <= MAX_COUNTS:
        for i, j in np.argwhere(counts).tolist():
            colour = "white" if shares[i, j] > 50 else "black"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="prediction", ylabel="label (images)")


def _draw_reliability(axes: "Axes", calibration: Calibration) -> None:
    """Accuracy with its interval over the bin's mean confidence; the diagonal is right."""
    axes.plot([0, 100], [0, 100], color="gray", linewidth=1)
    for each in calibration.bins:
        found = each.accuracy
        if found is not None and each.confidence is not None:
            error = [[found.percent - found.low], [found.high - found.percent]]
            axes.errorbar(
                each.confidence, found.percent, yerr=error, fmt="o", color="C0", capsize=3
            )
    title = (
        f"calibration error (ECE) {calibration.error:.2f} %\n"
        f"{len(calibration.bins)} bins, {calibration.n} images; bars: 95 % intervals"
    )
    axes.set(title=title, ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 102))
    axes.grid(alpha=0.3)


def _draw_histogram(axes: "Axes", calibration: Calibration) -> None:
    lows = [each.low for each in calibration.bins]
    width = 100 / len(lows)
    bars = axes.bar(lows, [each.n for each in calibration.bins], width, align="edge", color="C0")
    axes.bar_label(bars, [str(each.n) if each.n else "" for each in calibration.bins], fontsize=8)
    axes.margins(y=0.2)
    axes.set(xlabel="probability of the best class, %", ylabel="images")
