"""A contact sheet: many pictures in one PNG, with lines of text below each."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from irv2.system.files import write_atomically
from irv2.system.text import one_line
from irv2.types import UInt8Array

NUM_COLUMNS = 6
MAX_PICTURES = 120  # twenty rows
SIDE, LINE, GAP = 160, 16, 8  # pixels: of a picture, of a line of text, between tiles


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture, uint8 RGB (H, W, 3), and its lines, each cut to the picture's width."""

    picture: UInt8Array
    lines: tuple[str, ...]
    colour: str = "black"  # of the lines


def draw_sheet(heading: str, tiles: Iterable[Tile], path: Path) -> None:
    """Write a PNG of the tiles, row by row, under one or several lines of `heading`.

    Of each picture only a small copy is kept, so `tiles` may decode them one by one.
    """
    small = [(thumbnail(tile.picture), tile.lines, tile.colour) for tile in tiles]
    columns = min(NUM_COLUMNS, len(small))
    top_of_tiles = (heading.count("\n") + 1) * LINE + GAP
    width, height = SIDE + GAP, SIDE + max(len(lines) for _, lines, _ in small) * LINE + GAP
    needed = max(_font().getlength(line) for line in heading.split("\n"))
    size = (
        max(columns * width, math.ceil(needed) + GAP) + GAP,
        -(-len(small) // columns) * height + top_of_tiles,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP // 2), heading, "black", font=_font())
    for i, (picture, lines, colour) in enumerate(small):
        left, top = GAP + i % columns * width, top_of_tiles + i // columns * height
        place = (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2)
        sheet.paste(picture, place)
        for k, line in enumerate(lines):
            draw.text((left, top + SIDE + k * LINE), _shortened(line), colour, font=_font())
    write_atomically(path, lambda part: sheet.save(part, format="PNG"))


def thumbnail(picture: UInt8Array) -> Image.Image:
    """Return a copy of uint8 RGB (H, W, 3) whose longer side has SIDE pixels."""
    image = Image.fromarray(picture)
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _shortened(text: str) -> str:
    """Cut to the width of a picture."""
    text = one_line(text)
    while _font().getlength(text) > SIDE:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=LINE - 4)
