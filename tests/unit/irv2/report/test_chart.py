"""Charts: round numbers at the axes, every point inside the frame."""

import math

import pytest

from irv2.measures.estimates import proportion
from irv2.report.chart import HEIGHT, WIDTH, Line, interval_bar, line_chart, ticks


@pytest.mark.parametrize(
    ("highest", "expected"),
    [
        (100, [0, 20, 40, 60, 80, 100]),
        (51.3, [0, 20, 40, 60]),
        (0.03, [0, 0.01, 0.02, 0.03]),
        (0, [0, 1]),
    ],
)
def test_ticks_are_round_and_reach_the_highest_value(highest, expected):
    assert ticks(highest) == expected


def test_epochs_are_whole():
    assert ticks(3, whole=True) == [0, 1, 2, 3]


def test_points_lie_inside_and_what_is_not_finite_is_left_out():
    points = [(1, 90.0), (2, math.nan), (3, 0.0)]
    figure = line_chart("Errors", "percent", [Line("training", "train solid", points)], 1.5)
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in figure.iter("circle")]
    assert len(dots) == 2
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in dots)
    assert dots[0][1] < dots[1][1]  # 90 is above 0
    assert [line.get("class") for line in figure.iter("line")].count("divider") == 1
    assert figure.find("svg").get("aria-label") == "Errors"


def test_an_interval_is_drawn_around_its_rate():
    bar = interval_bar(proportion(5, 10))
    [dot], [_, whisker] = bar.findall("circle"), bar.findall("line")
    assert float(whisker.get("x1")) < float(dot.get("cx")) < float(whisker.get("x2"))
    assert not interval_bar(None).findall("circle")
