"""Counts and errors of a model's predictions."""

import numpy as np
import pytest

from irv2.ledger import Predictions


def ledger_of(logits: list[list[float]], labels: list[int]) -> Predictions:
    names = tuple(map(str, range(len(labels))))
    return Predictions(names, names, np.array(labels), np.array(logits, np.float32))


def test_the_original_average_gives_a_short_last_batch_full_weight():
    # Three wrong of 64, then one wrong of two.
    labels = [1] * 3 + [0] * 61 + [1, 0]
    ledger = ledger_of([[1.0] + [0.0] * 5] * 66, labels)
    assert ledger.errors()["top1_error"] == 400 / 66
    assert ledger.legacy_errors() == pytest.approx(
        {"legacy_top1_error": (100 * 3 / 64 + 50) / 2, "legacy_top5_error": 0}, abs=1e-9
    )
    # Without a short batch both are the same.
    assert ledger.legacy_errors(batch_size=33)["legacy_top1_error"] == pytest.approx(400 / 66)


def test_ties_count_for_the_lower_index():
    tied = ledger_of([[1.0, 1.0], [1.0, 1.0]], [0, 1])
    assert tied.errors() == {"n": 2, "top1_error": 50.0, "top5_error": 0.0}


def test_with_fewer_than_five_classes_top5_is_all_of_them():
    assert ledger_of([[0.0, 1.0, 2.0]], [0]).errors()["top5_error"] == 0.0
    assert ledger_of([[0.0, 1.0, 2.0]], [0]).top5.tolist() == [[2, 1, 0]]


def test_a_third_is_not_rounded():
    errors = ledger_of([[1, 0], [1, 0], [1, 0]], [0, 0, 1]).errors()
    assert errors["top1_error"] == 100 / 3
