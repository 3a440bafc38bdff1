"""Logits to answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from irv2.results import softmax, top_k_indices, top_k_scores


def test_ties_go_to_the_lower_index():
    many = np.repeat(np.array([[0, 1]], np.float32), 500, axis=0).reshape(1, 1000)
    assert top_k_indices(many, 5).tolist() == [[1, 3, 5, 7, 9]]  # too many for an insertion sort
    assert top_k_indices(np.array([[1, 3, 3, 2]], np.float32), 3).tolist() == [[1, 2, 3]]


@given(arrays.arrays(np.float32, (3, 6), elements=st.floats(-1e4, 1e4, width=32)))
def test_probabilities_are_the_exponentials_over_their_sum(logits):
    found = softmax(logits)
    assert found.dtype == np.float32
    # float32 results of float64 sums
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert ((found >= 0) & (found <= 1)).all()
    wide = logits.astype(np.longdouble)
    expected = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-6, atol=1e-30)


def test_scores_are_the_best_classes_with_their_probabilities():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    scores = top_k_scores(logits, ["a", "b", "c", "d"], 3)
    assert [(score.index, score.label) for score in scores] == [(1, "b"), (3, "d"), (2, "c")]
    # float32 logarithms
    assert [score.probability for score in scores] == pytest.approx([0.4, 0.3, 0.2], rel=1e-6)


@pytest.mark.parametrize(("asked", "given_back"), [(0, 5), (1, 1), (5, 5), (9, 9), (100, 9)])
def test_zero_scores_asked_means_five_and_too_many_means_all(asked, given_back):
    logits = np.arange(9, dtype=np.float32)
    assert len(top_k_scores(logits, list("abcdefghi"), asked)) == given_back
