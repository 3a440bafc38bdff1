"""A contact sheet: the pictures on which two models differ, with both answers below each."""

import logging
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from irv2.convert.inspect.diff import Difference, Row
from irv2.errors import DataError, ImageError
from irv2.images.decode import FILE_LIMITS, decode

logger = logging.getLogger(__name__)

NUM_COLUMNS = 6
MAX_PICTURES = 120  # twenty rows; the table has them all
SIDE, LINE, GAP = 160, 16, 8  # pixels: of a picture, of a line of text, between tiles
_NUM_LINES = 3
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
    columns = min(NUM_COLUMNS, len(rows))
    width, height = SIDE + GAP, SIDE + _NUM_LINES * LINE + GAP
    size = (columns * width + GAP, -(-len(rows) // columns) * height + GAP + 2 * LINE)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), f"A: {difference.a}\nB: {difference.b}", "black", font=_font())
    place = {images.path(i): i for i in range(len(images))}
    for i, row in enumerate(rows):
        left, top = GAP + i % columns * width, 2 * LINE + GAP + i // columns * height
        assert row.file is not None
        try:
            picture = Image.fromarray(decode(images.read(place[row.file]), FILE_LIMITS))
        except ImageError as error:
            raise error.about(row.file) from error
        _draw_tile(sheet, draw, picture, row, left, top)
    sheet.save(path, format="PNG")


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: Image.Image,
    row: Row,
    left: int,
    top: int,
) -> None:
    scale = SIDE / max(picture.size)
    shape = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((shape[0], shape[1]), Image.Resampling.BICUBIC)
    sheet.paste(picture, (left + (SIDE - shape[0]) // 2, top + (SIDE - shape[1]) // 2))
    lines = (
        f"{row.label}: {row.change}",
        f"A {row.a} ({row.margin_a:.2f})",
        f"B {row.b} ({row.margin_b:.2f})",
    )
    for k, line in enumerate(lines):
        place = (left, top + SIDE + k * LINE)
        draw.text(place, _shortened(line), _COLOURS[row.change], font=_font())


def _shortened(text: str) -> str:
    """Cut to the width of a picture."""
    while _font().getlength(text) > SIDE:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=LINE - 4)
