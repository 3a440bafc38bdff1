"""What is said of a model's answers as a whole."""

import json
from dataclasses import replace

import numpy as np
import pytest

from irv2.errors import EngineError


def test_the_fields_that_there_always_were_are_still_there(evaluation):
    found = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert (found["n"], found["top1_error"], found["top5_error"]) == (6, pytest.approx(100 / 3), 0)
    low, high = found["top1_error_interval"]
    assert low < found["top1_error"] < high
    assert found["calibration"]["n"] == found["balanced_accuracy"]["n"] == 6


def test_ten_crops_are_no_surer_than_one(evaluation):
    predictions = evaluation.predictions
    summed = replace(predictions, logits=10 * predictions.logits)
    ten = replace(evaluation, predictions=summed, crops=10)
    labels = predictions.labels
    one = evaluation.log_probabilities(labels)
    np.testing.assert_allclose(ten.log_probabilities(labels), one)
    assert ten.calibration.error == pytest.approx(evaluation.calibration.error)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_answer(evaluation, bad):
    logits = evaluation.predictions.logits.copy()
    logits[2, 1] = bad
    with pytest.raises(EngineError, match="test: 1 of 6 images gave logits that are not finite"):
        replace(evaluation, predictions=replace(evaluation.predictions, logits=logits))
