"""What a TensorRT engine's runner decides without a GPU."""

import pytest

from irv2.errors import EngineError
from irv2.runners.tensorrt import choose_profile


@pytest.mark.parametrize(
    ("profiles", "num_images", "chosen"),
    [
        ([(1, 64)], 1, 0),
        ([(1, 12), (13, 48)], 12, 0),
        ([(1, 12), (13, 48)], 13, 1),
        ([(13, 48), (1, 12)], 12, 1),
        ([(1, 64), (16, 32)], 8, 0),  # the nearest largest batch, but its smallest is above
        ([(1, 64), (16, 32)], 16, 1),
        ([(1, 64), (16, 32)], 33, 0),
        ([(1, 8), (1, 8)], 8, 0),
    ],
)
def test_a_batch_is_run_by_the_profile_that_holds_it_and_ends_nearest(profiles, num_images, chosen):
    assert choose_profile(profiles, num_images) == chosen


@pytest.mark.parametrize("num_images", [0, 5, 65])
def test_a_batch_that_no_profile_holds_is_one_line(num_images):
    with pytest.raises(EngineError, match=f"engine: no profile holds a batch of {num_images}"):
        choose_profile([(1, 4), (6, 64)], num_images)
