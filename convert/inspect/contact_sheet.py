"""A contact sheet: the pictures on which two models differ, with both answers below each."""

import logging
from collections.abc import Iterator
from pathlib import Path

from irv2.errors import DataError
from irv2.images.contact_sheet import MAX_PICTURES, Tile, draw_sheet
from irv2.images.decode import FILE_LIMITS, decode
from irv2.measures.difference import Difference

logger = logging.getLogger(__name__)

_COLOURS = {"lost": "#b00020", "gained": "#006d2c", "both wrong": "#444444"}


def write_sheet(difference: Difference, path: Path) -> None:
    """Write a PNG of the first pictures; raises DataError where there is none to show."""
    rows, images = [row for row in difference.rows if row.file is not None], difference.images
    if images is None or not rows:
        raise DataError(
            path,
            f"none of the {len(difference.rows)} differing images was found",
            "their files",
            "pass their folder with --data",
        )
    if len(rows) > MAX_PICTURES:
        logger.warning("%s: the first %d of %d pictures", path, MAX_PICTURES, len(rows))
        rows = rows[:MAX_PICTURES]
    place = {images.path(i): i for i in range(len(images))}

    def tiles() -> Iterator[Tile]:
        for row in rows:
            assert row.file is not None
            lines = (
                f"{row.label}: {row.change}",
                f"A {row.a} ({row.margin_a:.2f})",
                f"B {row.b} ({row.margin_b:.2f})",
            )
            picture = decode(images.read(place[row.file]), FILE_LIMITS)
            yield Tile(picture, lines, _COLOURS[row.change])

    draw_sheet(f"A: {difference.a}\nB: {difference.b}", tiles(), path)
