"""A server's probabilities as logits."""

import numpy as np

from irv2.evaluate_server import _logits
from irv2.results import Result, Score, softmax, top_k_indices


def test_probabilities_come_back_and_classes_keep_the_servers_order_also_at_zero():
    served = [(3, 0.75), (0, 0.25), (4, 1e-44), (2, 0.0), (1, 0.0)]
    result = Result(tuple(Score(index, str(index), p) for index, p in served))
    logits = _logits(result, 5)
    assert logits.dtype == np.float32
    assert top_k_indices(logits[None], 5)[0].tolist() == [3, 0, 4, 2, 1]
    np.testing.assert_allclose(softmax(logits), [0.25, 0, 0, 0.75, 0], atol=1e-7)


def test_a_class_that_the_server_leaves_out_is_no_number():
    result = Result((Score(1, "b", 1.0),))
    assert np.isnan(_logits(result, 2)).tolist() == [True, False]
