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
