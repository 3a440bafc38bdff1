"""Charts as inline SVG: sharp on paper, in the page's own colours, dark or light."""

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from irv2.measures.estimates import Estimate
from irv2.report.html import tag

WIDTH, HEIGHT = 720.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 12.0, 40.0  # margins, in which the labels stand
MAX_MARKED = 30  # points of a line that are marked
BAR_WIDTH, BAR_HEIGHT = 110.0, 14.0


class Line(NamedTuple):
    """A line of a chart; `style` is a class of style.css."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def line_chart(
    title: str, unit: str, lines: Sequence[Line], divider: float | None = None
) -> Element:
    """Draw `lines` over epochs, from 0 up; `divider` is the x of a dotted line."""
    last = max(x for line in lines for x, _ in line.points)
    finite = [y for line in lines for _, y in line.points if math.isfinite(y)]
    steps = ticks(max(finite, default=1.0))
    highest = steps[-1] or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / last, y / highest
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    shapes: list[Element] = []
    for y in steps:
        left, right = place(0, y), place(last, y)
        shapes.append(_line("grid", left, right))
        shapes.append(_text("end", left[0] - 6, left[1] + 4, f"{y:g}"))
    for x in ticks(last, whole=True):
        if x <= last:
            shapes.append(_text("middle", place(x, 0)[0], HEIGHT - BOTTOM + 18, f"{x:g}"))
    shapes.append(_text("middle", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "epoch"))
    if divider is not None:
        shapes.append(_line("divider", place(divider, 0), place(divider, highest)))
    for line in lines:
        shapes += _drawn(line, [place(*point) for point in line.points if math.isfinite(point[1])])
    drawing = tag(
        "svg",
        tag("title", title),
        *shapes,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=title,
    )
    legend = [tag("li", _sample(line.style), line.name) for line in lines]
    caption = tag("figcaption", f"{title}, {unit}", tag("ul", *legend, class_="legend"))
    return tag("figure", caption, drawing, class_="chart")


def interval_bar(estimate: Estimate | None) -> Element:
    """Draw a percentage as a dot on its interval; the numbers stand beside it."""
    y = BAR_HEIGHT / 2
    shapes = [_line("grid", (0, y), (BAR_WIDTH, y))]
    if estimate is not None:
        low, middle, high = (
            4 + value / 100 * (BAR_WIDTH - 8)
            for value in (estimate.low, estimate.percent, estimate.high)
        )
        shapes.append(_line("val whisker", (low, y), (high, y)))
        shapes.append(tag("circle", cx=middle, cy=y, r=2.0, class_="val dot"))
    return tag(
        "svg",
        *shapes,
        viewBox=f"0 0 {BAR_WIDTH:g} {BAR_HEIGHT:g}",
        class_="bar",
        aria_hidden="true",
    )


def ticks(highest: float, whole: bool = False) -> list[float]:
    """Return 0 and about five round numbers more, the last at or above `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * (1 - 1e-9))
    if whole:
        step = max(1, round(step))
    return [float(f"{i * step:.12g}") for i in range(math.ceil(highest / step - 1e-9) + 1)]


def _drawn(line: Line, places: list[tuple[float, float]]) -> list[Element]:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    shapes = [tag("polyline", points=points, class_=line.style)]
    if len(places) < MAX_MARKED:
        dot = f"{line.style} dot"
        shapes += [
            tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.5, class_=dot) for x, y in places
        ]
    return shapes


def _sample(style: str) -> Element:
    """A short piece of the line, for the legend."""
    line = _line(style, (0, 5), (26, 5))
    return tag("svg", line, viewBox="0 0 26 10", class_="sample", aria_hidden="true")


def _line(style: str, start: tuple[float, float], end: tuple[float, float]) -> Element:
    (x1, y1), (x2, y2) = start, end
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=style)


def _text(anchor: str, x: float, y: float, text: str) -> Element:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)
