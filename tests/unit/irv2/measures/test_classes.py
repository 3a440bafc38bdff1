"""Precision, recall, F1 and confusions, beside scikit-learn's."""

import json

import numpy as np
import pytest
from sklearn import metrics

from irv2.measures.classes import MAX_MATRIX, MAX_ROWS, Confusion

CLASSES = ["cat", "dog", "eel", "fox"]
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])  # no image of a fox
PREDICTED = np.array([0, 0, 1, 1, 1, 1, 0, 1, 3, 3])  # nothing is taken for an eel


@pytest.fixture
def confusion():
    return Confusion.count(LABELS, PREDICTED, CLASSES)


def test_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 300))
    found = Confusion.count(labels, predicted, CLASSES)
    rows = np.array([[c.precision.percent, c.recall.percent, c.f1.percent] for c in found.by_class])
    expected = metrics.precision_recall_fscore_support(labels, predicted)
    np.testing.assert_allclose(rows.T, 100 * np.array(expected[:3]))
    assert [c.n for c in found.by_class] == expected[3].tolist()
    np.testing.assert_array_equal(found.counts, metrics.confusion_matrix(labels, predicted))
    mean = 100 * metrics.balanced_accuracy_score(labels, predicted)
    assert found.balanced_accuracy.percent == pytest.approx(mean)


def test_every_estimate_has_the_number_of_images_that_could_count(confusion):
    cat = confusion.by_class[0]
    assert (cat.n, cat.recall.n, cat.precision.n, cat.f1.n) == (4, 4, 3, 5)


def test_a_class_without_images_or_answers_has_no_estimate_instead_of_0(confusion):
    _, _, eel, fox = confusion.by_class
    assert eel.precision is None
    assert (eel.recall.percent, eel.f1.percent) == (0, 0)
    assert fox.recall is None
    assert (fox.precision.percent, fox.precision.n) == (0, 2)
    assert confusion.balanced_accuracy.percent == pytest.approx((50 + 200 / 3 + 0) / 3)
    nobody = Confusion.count(LABELS[:4], PREDICTED[:4], CLASSES).by_class[3]
    assert (nobody.precision, nobody.recall, nobody.f1) == (None, None, None)


def test_the_most_frequent_confusions_come_first(confusion):
    assert confusion.pairs == [(0, 1, 2), (2, 3, 2), (1, 0, 1), (2, 1, 1)]
    first = confusion.to_json()["most_confused"][0]
    assert first == {"label": "cat", "prediction": "dog", "num_images": 2, "n": 4}


def test_json_holds_everything_in_plain_values(confusion):
    found = json.loads(json.dumps(confusion.to_json(), allow_nan=False))
    assert found["confusion_matrix"][0] == [2, 2, 0, 0]
    assert found["classes"][2]["precision"] is None
    assert set(found["classes"][0]["recall"]) == {"percent", "n", "low", "high"}
    assert (found["balanced_accuracy"]["n"], found["balanced_accuracy"]["num_classes"]) == (10, 3)


def test_a_terminal_shows_all_of_few_classes(confusion):
    text = confusion.to_text()
    assert "50.0 (6.8-93.2, n 4)" in text  # the recall of cats
    assert "confusion matrix" in text
    assert "2 of 4" in text


def test_a_terminal_shows_the_worst_of_many_classes():
    num = MAX_ROWS + 10
    labels = np.repeat(np.arange(num), 3)
    predicted = np.where(labels == num - 1, 0, labels)
    text = Confusion.count(labels, predicted, [f"class {i}" for i in range(num + 1)]).to_text()
    assert f"the {MAX_ROWS} of {num + 1} classes with the lowest F1" in text
    table = text.split("---\n")[1]
    assert table.startswith(f"class {num - 1} ")
    assert "confusion matrix" not in text
    assert num > MAX_MATRIX


def test_a_class_named_with_a_line_break_stays_in_its_row():
    text = Confusion.count(np.array([0, 0]), np.array([0, 1]), ["a\nb", "c"]).to_text()
    assert text.count("a\\nb") == 3
