"""The expected calibration error, by hand."""

import json

import numpy as np
import pytest

from irv2.measures.calibration import NUM_BINS, calibrate


def test_the_error_is_the_distance_of_accuracy_and_confidence_weighted_by_images():
    confidences = np.array([0.95, 0.97, 0.99, 0.99, 0.5, 0.52])
    right = np.array([True, True, True, False, True, False])
    found = calibrate(confidences, right)
    expected = 4 / 6 * abs(0.75 - 0.975) + 2 / 6 * abs(0.5 - 0.51)
    assert found.error == pytest.approx(100 * expected)
    filled = [each for each in found.bins if each.n]
    assert [each.n for each in filled] == [2, 4]
    assert filled[1].confidence == pytest.approx(97.5)
    assert (filled[1].accuracy.percent, filled[1].accuracy.n) == (75, 4)


def test_who_is_right_as_often_as_he_says_has_nearly_no_error():
    rng = np.random.default_rng(0)
    confidences = rng.uniform(0.2, 1, 200_000)
    assert calibrate(confidences, rng.uniform(size=200_000) < confidences).error < 0.6


def test_every_image_is_in_one_bin_also_at_the_edges():
    confidences = np.array([0.0, 1 / NUM_BINS, 2 / NUM_BINS, 1.0, 1 + 1e-16])
    found = calibrate(confidences, np.ones(5, bool))
    assert sum(each.n for each in found.bins) == found.n == 5
    assert found.bins[-1].n == 2


def test_json_has_the_bins_and_no_number_for_an_empty_one():
    found = calibrate(np.array([0.9]), np.array([True])).to_json()
    assert (found["n"], found["num_bins"], len(found["bins"])) == (1, NUM_BINS, NUM_BINS)
    assert (found["bins"][0]["confidence"], found["bins"][0]["accuracy"]) == (None, None)
    json.dumps(found, allow_nan=False)
