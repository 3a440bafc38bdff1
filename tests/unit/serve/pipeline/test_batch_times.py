"""What the batcher predicts with."""

import pytest

from irv2.serve.pipeline.batch_times import BatchTimes


def test_batch_times_are_interpolated_and_extrapolated():
    times = BatchTimes()
    assert times.predict(5) == 0.0
    times.learn(2, 1.0)
    times.learn(4, 2.0)
    assert [times.predict(size) for size in (1, 3, 8)] == [1.0, 1.5, 4.0]
    times.learn(4, 3.0)
    assert times.predict(4) == pytest.approx(2.2)
