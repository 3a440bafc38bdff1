"""The images with the highest loss, listed and drawn."""

import math

import numpy as np
import pytest
from PIL import Image

from irv2.images.contact_sheet import GAP, LINE, SIDE
from irv2.measures.worst import draw_worst, worst, worst_table


def test_the_worst_comes_first_with_its_file_and_probabilities(evaluation):
    first, second, third = worst(evaluation, 3)
    assert (first.file, first.label) == (evaluation.data / "val/red/1.png", "red")
    assert (first.prediction, first.probability) == ("blue", pytest.approx(99.975, abs=1e-3))
    assert first.loss == pytest.approx(9 + math.log1p(2 * math.exp(-9)))
    assert first.label_probability == pytest.approx(100 * math.exp(-first.loss))
    assert (second.label, second.prediction) == ("blue", "green")
    assert third.label == third.prediction == "red"  # right, but unsure
    assert len(worst(evaluation, 100)) == 6
    assert worst(evaluation, 0) == []


def test_the_table_says_of_how_many_images_they_are_the_worst(evaluation):
    text = worst_table(worst(evaluation, 2), 6)
    assert text.startswith("the 2 of 6 images with the highest loss:")
    assert "val/red/1.png" in text


def test_the_sheet_shows_them_in_the_same_order(evaluation, tmp_path):
    draw_worst(evaluation, worst(evaluation, 3), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    left, top = GAP + SIDE // 2, 2 * LINE + GAP + SIDE // 2
    shown = [pixels[top, left + i * (SIDE + GAP)].tolist() for i in range(3)]
    assert shown == [[201, 0, 0], [0, 0, 201], [200, 0, 0]]
