"""The picture of an evaluation."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from irv2.measures.picture import draw_evaluation


@pytest.mark.parametrize("num_more", [0, 30, 70])  # with counts, with names, with neither
def test_the_picture_is_drawn_for_few_and_many_classes(evaluation, tmp_path, num_more):
    predictions = evaluation.predictions
    logits = np.pad(predictions.logits, ((0, 0), (0, num_more)), constant_values=-9)
    classes = [*evaluation.classes, *(f"_$x^{i}猫" for i in range(num_more))]  # no formulas
    wide = replace(evaluation, predictions=replace(predictions, logits=logits), classes=classes)
    draw_evaluation(wide, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
