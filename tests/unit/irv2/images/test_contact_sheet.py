"""A sheet of pictures with text below each."""

import numpy as np
from PIL import Image

from irv2.images.contact_sheet import GAP, LINE, NUM_COLUMNS, SIDE, Tile, draw_sheet


def test_pictures_fill_rows_and_keep_their_shape(tmp_path):
    pictures = [np.full((10, 20, 3), 10 * i, np.uint8) for i in range(NUM_COLUMNS + 1)]
    draw_sheet("one\ntwo", (Tile(p, ("a", "b")) for p in pictures), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 * LINE + GAP + 2 * (SIDE + 2 * LINE + GAP),
                            NUM_COLUMNS * (SIDE + GAP) + GAP, 3)  # fmt: skip
    last = pixels[2 * LINE + GAP + SIDE + 2 * LINE + GAP + SIDE // 2, GAP : GAP + SIDE]
    assert (last == 60).all()
    below = pixels[2 * LINE + GAP + SIDE // 2 + SIDE // 4 + 1, GAP + SIDE // 2]
    assert (below == 255).all()  # twice as wide as high


def test_a_long_heading_widens_the_sheet_and_a_long_line_is_cut(tmp_path):
    tile = Tile(np.zeros((9, 9, 3), np.uint8), ("long " * 99 + "\n",), "#ff0000")
    draw_sheet("heading " * 50, [tile], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] > 10 * SIDE
    red = (pixels == (255, 0, 0)).all(-1)
    assert red.any()
    assert not red[:, GAP + SIDE :].any()
