"""Mixed images, their labels' shares, and that shares of a batch are mixed as the whole is."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest, uniform

from irv2.train.learner.mixing import Mix, draw_mix, partners
from irv2.train.settings import SETTINGS, Recipe

CPU = torch.device("cpu")


def recipe(**values: float) -> Recipe:
    return dataclasses.replace(SETTINGS["2"], **values)


def test_the_settings_mix_nothing():
    assert draw_mix(recipe(), 1) is None


def test_a_mix_is_a_function_of_seed_and_step():
    mine = recipe(mixup=0.2)
    assert draw_mix(mine, 5) == draw_mix(mine, 5)
    assert draw_mix(mine, 5) != draw_mix(mine, 6)
    assert draw_mix(mine, 5) != draw_mix(recipe(mixup=0.2, seed=1), 5)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_s_shares_have_the_beta_distribution(alpha):
    shares = [draw_mix(recipe(mixup=alpha), step).own_share for step in range(2_000)]
    assert kstest(shares, beta(alpha, alpha).cdf).pvalue > 0.001


def test_mixup_blends_pixels_by_the_labels_shares():
    images = torch.rand(3, 3, 4, 4)
    mix = Mix(own_share=0.7)
    expected = 0.7 * images + 0.3 * images[[1, 2, 0]]
    torch.testing.assert_close(mix.images(images, partners(3, 1, CPU)), expected)


def test_cutmix_s_shares_are_exactly_the_areas():
    shares = []
    own, other = torch.zeros(1, 1, 299, 299), torch.ones(1, 1, 299, 299)
    for step in range(1_000):
        mix = draw_mix(recipe(cutmix=1.0), step)
        mixed = mix.images(torch.cat([own, other]), torch.tensor([1, 0]))
        assert ((mixed == 0) | (mixed == 1)).all()
        assert mix.own_share == 1 - mixed[0].sum().item() / 299**2
        assert mixed[0].sum() == 299**2 - mixed[1].sum()
        shares.append(mix.own_share)
    # Uniform, were it not for the edges, which leave more of the image.
    assert kstest(shares, uniform.cdf, alternative="greater").pvalue > 0.001
    assert np.mean(shares) > 0.55


def test_both_kinds_take_half_of_the_steps_each():
    boxes = [draw_mix(recipe(mixup=0.2, cutmix=1.0), step).box for step in range(1_000)]
    assert sum(box is None for box in boxes) == pytest.approx(500, abs=50)
    assert all(draw_mix(recipe(cutmix=1.0), step).box is not None for step in range(50))


@pytest.mark.parametrize("mix", [Mix(own_share=0.4), Mix(own_share=0.75, box=(slice(2), slice(2)))])
def test_mixed_images_stay_in_channels_last(mix):
    images = torch.rand(4, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    mixed = mix.images(images, partners(4, 1, CPU))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("num", "groups"), [(8, 2), (7, 2), (2, 2), (3, 2), (47, 2), (64, 4)])
def test_partners_are_other_images_of_the_batch_norm_group(num, groups):
    found = partners(num, groups, CPU)
    assert sorted(found.tolist()) == list(range(num))
    for group in torch.arange(num).tensor_split(groups if num >= 4 else 1):
        of_group = found[group]
        assert set(of_group.tolist()) == set(group.tolist())
        assert (of_group != group).all()
