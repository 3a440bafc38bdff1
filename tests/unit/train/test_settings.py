import dataclasses

import numpy as np
import pytest

from irv2.errors import UsageError
from irv2.train.settings import RECIPES, SETTINGS, modern_recipe, sample_recipe


@pytest.mark.parametrize(
    ("setting", "gamma", "decay_steps"),
    [("1", 0.96, 12_800), ("2", 0.96, 25_600), ("paper", 0.94, 80_076)],
)
def test_learning_rate_is_the_originals_at_each_of_two_million_steps(setting, gamma, decay_steps):
    steps = np.arange(1, 2_000_001)
    expected = 0.045 * gamma ** np.floor(steps / decay_steps)
    actual = np.fromiter(map(SETTINGS[setting].learning_rate_at, steps.tolist()), np.float64)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)  # powers round differently


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
        "epochs",
        "decay_steps",
        "learning_rate",
        "momentum",
        "blocks",
        "width",
        "resize",
        "image_size",
        "augmentation",
        "max_shift",
        "flip",
    }


def test_a_batch_that_does_not_split_into_groups_is_refused():
    with pytest.raises(UsageError, match="multiple of 32"):
        dataclasses.replace(SETTINGS["2"], batch_size=48)


def test_the_modern_recipe_warms_up_then_follows_a_cosine_to_nothing():
    recipe = modern_recipe(dataclasses.replace(SETTINGS["2"], epochs=10), 6400)
    assert (recipe.warmup_steps, recipe.cosine_steps) == (50, 1000)
    assert recipe.learning_rate_at(1) == pytest.approx(0.045 / 50)
    assert recipe.learning_rate_at(501) == pytest.approx(0.045 / 2)
    rates = [recipe.learning_rate_at(step) for step in range(50, 1001)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-6


def test_the_modern_recipe_too_follows_the_images_seen():
    one = modern_recipe(dataclasses.replace(SETTINGS["2"], epochs=10), 6400)
    four = dataclasses.replace(one, batch_size=256)
    warmed_up, begun = (four.learning_rate_at(10), one.learning_rate_at(40))
    assert warmed_up == pytest.approx(4 * begun, rel=0.01)  # the cosine is of the images before
    assert four.learning_rate_at(126) == pytest.approx(4 * one.learning_rate_at(501))


def test_the_average_of_the_weights_forgets_its_start_sooner():
    recipe = modern_recipe(SETTINGS["2"], 6400)
    assert recipe.ema_decay_at(1) == pytest.approx(2 / 11)
    assert recipe.ema_decay_at(10**6) == 0.9999


def test_settings_have_nothing_modern():
    for recipe in SETTINGS.values():
        assert (recipe.label_smoothing, recipe.warmup_steps, recipe.cosine_steps) == (0, 0, 0)
        assert (recipe.ema_decay, recipe.residual_scale, recipe.precision) == (0, 0.1, "fp32")


@pytest.mark.parametrize("fields", [{"augmentation": "shift"}, {"max_shift": 0.1}])
def test_a_shift_without_its_reach_or_a_reach_without_shifts_is_refused(fields):
    with pytest.raises(UsageError, match=r"--max-shift: .*above 0 with shift"):
        dataclasses.replace(SETTINGS["2"], **fields)


def test_settings_augment_as_the_original_did():
    for recipe in RECIPES.values():
        assert (recipe.min_area, recipe.auto_augment, recipe.erase) == (0.08, "none", 0)
        assert (recipe.mixup, recipe.cutmix) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_area": 0.5, "augmentation": "shift", "max_shift": 0.1}, "--min-area: 0.5 with"),
        ({"mixup": 0.2, "trained": "head", "feature_crops": 1}, "--mixup: given with --train head"),
        ({"cutmix": 1, "trained": "head", "feature_crops": 1}, "--cutmix: given with --train head"),
    ],
)
def test_an_augmentation_that_would_have_no_effect_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SETTINGS["2"], **fields)


def test_one_remedy_against_imbalance_is_enough():
    with pytest.raises(UsageError, match="--class-weights balanced: given with --sampling"):
        dataclasses.replace(SETTINGS["1"], class_weights="balanced", sampling="balanced")


def test_patience_waits_while_the_weights_or_their_average_get_better():
    recipe = dataclasses.replace(SETTINGS["2"], patience=2)

    def is_over(*errors: tuple[float, float]) -> bool:
        names = ("val_top1_error", "ema_val_top1_error")
        rows = [dict(zip(names, pair, strict=True)) for pair in errors]
        return recipe.is_over([{"epoch": 1, **row} for row in rows])

    assert is_over((5, 9), (6, 8), (6, 7))
    assert not is_over((5, 9), (6, 8), (6, 4))
    assert not is_over((5, 9), (4, 9), (6, 9))
