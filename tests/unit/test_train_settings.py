import dataclasses

import numpy as np
import pytest

from irv2.errors import UsageError
from train.settings import SETTINGS, sample_recipe


@pytest.mark.parametrize(
    ("setting", "gamma", "decay_steps"),
    [("1", 0.96, 12_800), ("2", 0.96, 25_600), ("paper", 0.94, 80_076)],
)
def test_learning_rate_is_the_originals_around_every_decay_of_two_million_steps(
    setting, gamma, decay_steps
):
    recipe = SETTINGS[setting]
    edges = np.arange(decay_steps, 2_000_000, decay_steps)
    steps = np.unique(np.concatenate([[1, 2], edges - 1, edges, edges + 1]))
    expected = 0.045 * gamma ** np.floor(steps / decay_steps)
    actual = [recipe.learning_rate_at(int(step)) for step in steps]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_step_12800_of_setting_1_already_has_the_lower_rate():
    assert SETTINGS["1"].learning_rate_at(12_799) == 0.045
    assert SETTINGS["1"].learning_rate_at(12_800) == pytest.approx(0.045 * 0.96)


def test_rate_and_decay_follow_the_images_seen_when_the_batch_is_larger():
    one = SETTINGS["2"]
    four = dataclasses.replace(one, batch_size=256)
    assert four.learning_rate_at(1) == pytest.approx(4 * 0.045)
    assert four.learning_rate_at(6_399) == pytest.approx(4 * one.learning_rate_at(25_599))
    assert four.learning_rate_at(6_400) == pytest.approx(4 * one.learning_rate_at(25_600))


def test_settings_hold_what_the_contract_says():
    for recipe in SETTINGS.values():
        assert (recipe.momentum, recipe.weight_decay) == (0.4737, 1e-4)
        assert (recipe.batch_size, recipe.bn_group, recipe.bn_groups) == (64, 32, 2)
        assert (recipe.resize, recipe.image_size, recipe.blocks) == (328, 299, (5, 10, 5))
    assert [SETTINGS[name].epochs for name in ("1", "2", "paper")] == [90, 90, 300]


def test_sample_recipe_has_as_many_decays_as_the_setting():
    recipe = sample_recipe("2", 1437)
    steps = 16 * 23
    decays = steps // recipe.decay_steps
    assert decays == pytest.approx(90 * 20_019 / 25_600, rel=0.1)  # decay steps are whole numbers


def test_sample_recipe_says_all_that_differs_from_the_setting():
    names = {line.split()[0] for line in sample_recipe("1", 1437).differences(SETTINGS["1"])}
    assert names == {
        "epochs", "decay_steps", "learning_rate", "momentum", "blocks", "width", "resize",
        "image_size", "augmentation", "max_shift", "flip",
    }  # fmt: skip


def test_a_batch_that_does_not_split_into_groups_is_refused():
    with pytest.raises(UsageError, match="multiple of 32"):
        dataclasses.replace(SETTINGS["2"], batch_size=48)


@pytest.mark.parametrize("fields", [{"augmentation": "shift"}, {"max_shift": 0.1}])
def test_a_shift_without_its_reach_or_a_reach_without_shifts_is_refused(fields):
    with pytest.raises(UsageError, match=r"--max-shift: .*above 0 with shift"):
        dataclasses.replace(SETTINGS["2"], **fields)
