"""When a run is stopped because it leads nowhere, and what it is told to try."""

from pathlib import Path

import pytest
import torch

from irv2.train.divergence import DivergenceError, Guard
from irv2.train.run.folder import Run
from irv2.train.settings import SETTINGS


def guard(path: Path, num_classes: int = 10, chance_steps: int = 2) -> Guard:
    return Guard(Run(path, {}), SETTINGS["2"], num_classes, chance_steps)


def totals(wrong: int, num: int) -> torch.Tensor:
    return torch.tensor([2.3 * num, wrong, 0, num], dtype=torch.float64)


def test_errors_as_by_guessing_stop_the_run_after_so_many_steps(tmp_path):
    mine = guard(tmp_path)
    mine.check_step(1, totals(45, 50))
    expected = r"step 2: top-1 error 90.00 % of the last 100 images, as by guessing; expected below"
    with pytest.raises(DivergenceError, match=expected):
        mine.check_step(2, totals(45, 50))


def test_what_is_clearly_better_than_guessing_goes_on_and_is_counted_anew(tmp_path):
    mine = guard(tmp_path)
    mine.check_step(1, totals(40, 50))
    mine.check_step(2, totals(40, 50))  # 20 of 100 right: over three deviations more than 10
    mine.check_step(3, totals(45, 50))
    with pytest.raises(DivergenceError):
        mine.check_step(4, totals(45, 50))


@pytest.mark.parametrize(("num_classes", "wrong"), [(2, 0), (2, 8), (1, 0)])
def test_too_few_images_to_tell_stop_nothing(tmp_path, num_classes, wrong):
    """Of 8 images in two classes even all right would not be three deviations over chance."""
    guard(tmp_path, num_classes, chance_steps=1).check_step(1, totals(wrong, 8))


def test_too_few_images_are_looked_at_with_the_next_ones(tmp_path):
    mine = guard(tmp_path, num_classes=2, chance_steps=1)
    mine.check_step(1, totals(4, 8))
    with pytest.raises(DivergenceError, match="of the last 16 images"):
        mine.check_step(2, totals(4, 8))


def test_steps_are_not_compared_with_chance_where_that_is_switched_off(tmp_path):
    guard(tmp_path, chance_steps=0).check_step(5000, totals(100, 100))


def test_the_way_out_names_a_new_folder_half_the_rate_and_a_checkpoint_that_is_there(tmp_path):
    mine = guard(tmp_path)
    with pytest.raises(DivergenceError, match=r"--out NEW --learning-rate 0\.0225, or") as without:
        mine.check_finite(7, "the loss is nan,", False)
    assert "last.pt" not in str(without.value)
    (tmp_path / "last.pt").touch()
    expected = f"--out NEW --init-from {tmp_path}/last.pt --learning-rate 0.0225"
    with pytest.raises(DivergenceError, match=expected):
        mine.check_finite(7, "the loss is nan,", False)
