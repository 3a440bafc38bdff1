"""Draw the blocks of `irv2.convert.inspect.graph`: one panel each, top to bottom, in columns.

Units are of the drawing: a layer is `BOX` wide and 1 high with its gap; y grows downwards.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from irv2.convert.inspect.graph import Block, Branches, Layer, Series
from irv2.system.files import write_atomically

BOX, HEIGHT = 2.6, 0.62  # a layer's box; between boxes lies BOX_GAP, between rows 1 - HEIGHT
BOX_GAP = 0.3
IDENTITY = 0.8  # the width of a branch without layers
FORK = 0.45  # where branches part, and again where they meet
HEADER, MARGIN, PANEL_GAP, COLUMN_GAP = 0.95, 0.35, 0.7, 1.4
INCHES = 0.42  # per unit
COLUMNS = 3
_COLORS = {
    "Conv": "#cfe2f3",
    "Gemm": "#cfe2f3",
    "MaxPool": "#f9d5c9",
    "AveragePool": "#f9d5c9",
    "ReduceMean": "#f9d5c9",
    "Concat": "#dddddd",
    "Add": "#dddddd",
}
_OTHER = "#fff2cc"
_GREY = "#555555"
NOTE = (
    "Every convolution is followed by ReLU unless marked linear; batch norm is folded in.  "
    "/2: stride 2   V: no padding   kernels are height × width"
)


class Panel(NamedTuple):
    """A block and where it goes: its top left corner and its size."""

    block: Block
    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """The x of its line in and out."""
        return self.x + self.width / 2


def draw_graph(blocks: list[Block], title: str, out: Path) -> None:
    """Write the picture as `out`'s suffix says, .png or .svg."""
    panels = _arrange(blocks)
    right = max(panel.x + panel.width for panel in panels) + COLUMN_GAP / 2
    bottom = max(panel.y + panel.height for panel in panels) + PANEL_GAP
    figure = Figure(figsize=(INCHES * (right + COLUMN_GAP / 2), INCHES * (bottom + 2.4)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-COLUMN_GAP / 2, right), ylim=(bottom + 0.8, -1.6), aspect="equal")
    axes.axis("off")
    axes.text(0, -0.9, title, fontsize=11, fontweight="bold", va="center")
    axes.text(0, bottom + 0.2, NOTE, fontsize=7, color=_GREY, va="center")
    for panel in panels:
        _draw_panel(axes, panel)
    for before, after in itertools.pairwise(panels):
        _connect(axes, before, after)
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        suffix = out.suffix.lstrip(".")
        write_atomically(out, lambda beside: figure.savefig(beside, format=suffix, dpi=130))


def _size(series: Series) -> tuple[float, float]:
    """Width and height of a series."""
    width, height = BOX if series else IDENTITY, 0.0
    for item in series:
        if isinstance(item, Layer):
            height += 1
        else:
            sizes = [_size(branch) for branch in item.series]
            width = max(width, sum(w for w, _ in sizes) + BOX_GAP * (len(sizes) - 1))
            height += max(h for _, h in sizes) + 2 * FORK
    return width, height


def _arrange(blocks: list[Block]) -> list[Panel]:
    sizes = [_size(block.series) for block in blocks]
    heights = [height + HEADER + MARGIN for _, height in sizes]
    widths = [max(width, 2.2 * BOX) + 2 * MARGIN for width, _ in sizes]
    limit = max(sum(heights) / COLUMNS, *heights, 0.0) + PANEL_GAP * len(blocks) / COLUMNS
    columns: list[list[int]] = [[]]
    for i, height in enumerate(heights):
        filled = sum(heights[j] + PANEL_GAP for j in columns[-1])
        if columns[-1] and filled + height > limit:
            columns.append([])
        columns[-1].append(i)
    panels, x = [], 0.0
    for column in columns:
        width, y = max(widths[i] for i in column), 0.0
        for i in column:
            panels.append(Panel(blocks[i], x, y, width, heights[i]))
            y += heights[i] + PANEL_GAP
        x += width + COLUMN_GAP
    return panels


def _draw_panel(axes: Axes, panel: Panel) -> None:
    block = panel.block
    _rounded(axes, panel.x, panel.y, panel.width, panel.height, "#f7f7f7", "#bbbbbb", zorder=0)
    count = f"{block.count} × " if block.count > 1 else ""
    top = panel.y + 0.42
    axes.text(panel.x + 0.3, top, count + block.title, fontsize=8.5, fontweight="bold", va="center")
    axes.text(
        panel.x + panel.width - 0.3,
        top,
        " × ".join(map(str, block.shape)),
        fontsize=7.5,
        va="center",
        ha="right",
        color=_GREY,
    )
    end = _draw_series(axes, block.series, panel.middle, panel.y + HEADER)
    _line(axes, [panel.middle] * 2, [end, panel.y + panel.height])


def _draw_series(axes: Axes, series: Series, x: float, y: float) -> float:
    """Draw downwards from (x, y), centred on x; returns where it ends."""
    for item in series:
        if isinstance(item, Layer):
            _line(axes, [x, x], [y, y + 1])
            color = _COLORS.get(item.kind, _OTHER)
            _rounded(axes, x - BOX / 2, y + (1 - HEIGHT) / 2, BOX, HEIGHT, color, "#777777")
            axes.text(x, y + 0.5, item.label, fontsize=6.5, ha="center", va="center", zorder=3)
            y += 1
        else:
            y = _draw_branches(axes, item, x, y)
    return y


def _draw_branches(axes: Axes, branches: Branches, x: float, y: float) -> float:
    sizes = [_size(branch) for branch in branches.series]
    left = x - (sum(width for width, _ in sizes) + BOX_GAP * (len(sizes) - 1)) / 2
    top, bottom = y + FORK, y + FORK + max(height for _, height in sizes)
    for branch, (width, _) in zip(branches.series, sizes, strict=True):
        middle = left + width / 2
        fork, join = y + FORK / 2, bottom + FORK / 2
        end = _draw_series(axes, branch, middle, top)
        _line(axes, [x, x, middle, middle], [y, fork, fork, top])
        _line(axes, [middle, middle, x, x], [end, join, join, bottom + FORK])
        left += width + BOX_GAP
    return bottom + FORK


def _connect(axes: Axes, before: Panel, after: Panel) -> None:
    """An arrow from a panel to the next, round the corner where that is in another column."""
    start, end = before.y + before.height, after.y
    if before.x != after.x:
        gutter = before.x + before.width + COLUMN_GAP / 2
        low, high = start + PANEL_GAP / 2, end - PANEL_GAP / 2
        _line(
            axes,
            [before.middle, before.middle, gutter, gutter, after.middle, after.middle],
            [start, low, low, high, high, end],
        )
        start = high
    arrow = {"arrowstyle": "-|>", "color": _GREY, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (after.middle, end), (after.middle, start), arrowprops=arrow)


def _line(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.plot(xs, ys, color=_GREY, linewidth=1.0, zorder=1, solid_joinstyle="miter")


def _rounded(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    face: str,
    edge: str,
    zorder: int = 2,
) -> None:
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle=style,
            facecolor=face,
            edgecolor=edge,
            linewidth=0.8,
            zorder=zorder,
        )
    )
