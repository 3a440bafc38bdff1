"""What the batcher predicts with."""

import numpy as np
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


def test_what_ran_beside_an_idle_stream_is_no_promise_for_busy_ones():
    times = BatchTimes()
    times.learn(4, 2.0)
    times.learn(4, 1.0, all_busy=False)
    assert times.predict(4) == times.fastest(4) == 2.0
    times.learn(4, 7.0, all_busy=False)
    assert times.predict(4) == pytest.approx(3.0)
    times.learn(4, 1.0, all_busy=False)
    assert times.predict(4) == pytest.approx(2.8), "a slow one is forgotten all the same"
    times.learn(2, 1.0, all_busy=False)
    assert (times.predict(2), times.fastest(2)) == (1.0, 0.0)


@pytest.mark.parametrize(("place", "expected"), [(0, 1.0), (1, 1.5), (2, 3.0), (3, 3.5), (4, 5.0)])
def test_streams_take_turns(place, expected):
    times = BatchTimes()
    times.learn(8, 2.0)
    assert times.starts_at(place, 8, [1.0, 1.5]) == expected


@pytest.mark.parametrize("sizes", [(), (1,), (4,), (2, 5, 8)])
def test_what_is_written_for_others_is_what_is_predicted(sizes):
    times = BatchTimes()
    for size in sizes:
        times.learn(size, 0.1 * size + 0.05)
        times.learn(size, 0.3 * size + 0.05)
    predicted, fastest = np.zeros(11), np.zeros(11)
    times.write(predicted, fastest)
    assert predicted[1:] == pytest.approx([times.predict(size) for size in range(1, 11)])
    assert fastest.tolist() == [times.fastest(size) for size in range(11)]
