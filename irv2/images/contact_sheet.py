"""A contact sheet: pictures side by side, with lines of text below each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from irv2.images.decode import FILE_LIMITS, decode
from irv2.system.files import write_atomically

NUM_COLUMNS = 6
MAX_PICTURES = 120  # twenty rows
SIDE, LINE, GAP = 160, 16, 8  # pixels: of a picture, of a line of text, between tiles


class Tile(NamedTuple):
    """An encoded image and the lines of text below it."""

    encoded: bytes
    lines: tuple[str, ...]
    colour: str


def write_tiles(path: Path, title: str, tiles: Sequence[Tile]) -> None:
    """Write a PNG of the tiles below a title of up to two lines."""
    columns = max(1, min(NUM_COLUMNS, len(tiles)))
    num_lines = max((len(tile.lines) for tile in tiles), default=0)
    width, height = SIDE + GAP, SIDE + num_lines * LINE + GAP
    size = (columns * width + GAP, -(-len(tiles) // columns) * height + GAP + 2 * LINE)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), title, "black", font=_font())
    for i, tile in enumerate(tiles):
        left, top = GAP + i % columns * width, 2 * LINE + GAP + i // columns * height
        _draw_tile(sheet, draw, tile, left, top)
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int
) -> None:
    picture = Image.fromarray(decode(tile.encoded, FILE_LIMITS))
    scale = SIDE / max(picture.size)
    shape = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((shape[0], shape[1]), Image.Resampling.BICUBIC)
    sheet.paste(picture, (left + (SIDE - shape[0]) // 2, top + (SIDE - shape[1]) // 2))
    for k, line in enumerate(tile.lines):
        draw.text((left, top + SIDE + k * LINE), _shortened(line), tile.colour, font=_font())


def _shortened(text: str) -> str:
    """Cut to the width of a picture."""
    while _font().getlength(text) > SIDE:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=LINE - 4)
