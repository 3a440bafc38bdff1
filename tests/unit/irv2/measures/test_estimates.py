"""Intervals that hold what they promise: compared with scipy's, and by their coverage."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from irv2.measures.estimates import balanced_accuracy, f1_score, proportion


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 36), (35, 36), (500, 1000)])
def test_a_proportion_has_clopper_and_pearsons_interval(k, n):
    found, expected = proportion(k, n), binomtest(k, n).proportion_ci(0.95, "exact")
    assert (found.percent, found.n) == (100 * k / n, n)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_nothing_is_said_of_no_images():
    assert proportion(0, 0) is None
    assert f1_score(0, 0) is None


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    right, false_positives, false_negatives = 30, 12, 5
    precision, recall = right / (right + false_positives), right / (right + false_negatives)
    found = f1_score(right, right + false_positives + false_negatives)
    assert found.percent == pytest.approx(200 * precision * recall / (precision + recall))
    assert 0 < found.low < found.percent < found.high < 100


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_the_interval_of_f1_holds_the_true_one_in_95_percent_of_data_sets(n, p):
    f1 = 200 * p / (1 + p)
    covered = sum(
        binom.pmf(k, n, p) for k in range(n + 1) if f1_score(k, n).low <= f1 <= f1_score(k, n).high
    )
    assert covered >= 0.95


@pytest.mark.parametrize(
    ("sizes", "recalls"),
    [
        ((36, 36), (0.9, 0.6)),
        ((5, 200), (0.5, 0.95)),
        ((1000, 20), (0.99, 0.9)),  # too narrow by equal variance alone: 90 %
        ((4,) * 50, (0.9,) * 50),  # too narrow by MOVER alone: 90 %
        ((20,), (0.7,)),
    ],
)
def test_the_interval_of_the_balanced_accuracy_holds_the_true_one_in_95_percent(sizes, recalls):
    rng = np.random.default_rng(0)
    draws = np.stack([rng.binomial(n, p, 1000) for n, p in zip(sizes, recalls, strict=True)], 1)
    found = [
        balanced_accuracy([proportion(k, n) for k, n in zip(row, sizes, strict=True)])
        for row in draws.tolist()
    ]
    true = 100 * np.mean(recalls)
    covered = np.mean([each.low <= true <= each.high for each in found])
    assert covered >= 0.94  # 1000 draws: a standard error of 0.007
    assert all(each.n == sum(sizes) and 0 <= each.low <= each.high <= 100 for each in found)
