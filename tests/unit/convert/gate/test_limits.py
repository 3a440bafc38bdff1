"""The gate's arithmetic against docs/gate.md: limits, edges, and how often it errs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from irv2.convert.gate.limits import (
    disagreement_verdict,
    images_to_agree,
    images_to_decide,
    is_above_chance,
    lower_loss_points,
    lower_points,
    upper_loss_points,
    upper_points,
    verdict,
)
from irv2.measures.agreement import Agreement, smallest_passing_n

# lost, gained, images -> upper and lower limit in points
LIMITS = [
    (0, 0, 360, 0.828695, -0.828695),
    (1, 0, 360, 1.310908, -0.591811),
    (3, 1, 1000, 0.682935, -0.232557),
    (12, 9, 10000, 0.115912, -0.054047),
    (60, 40, 10000, 0.373605, 0.029170),
    (250, 200, 50000, 0.171302, 0.029016),
    (20, 0, 20, 100, 80.327110),
]


@pytest.mark.parametrize(("lost", "gained", "n", "upper", "lower"), LIMITS)
def test_limits_of_the_loss_are_the_documented_ones(lost, gained, n, upper, lower):
    # Six decimals are what the document gives.
    assert upper_loss_points(lost, gained, n) == pytest.approx(upper, abs=5.1e-7)
    assert lower_loss_points(lost, gained, n) == pytest.approx(lower, abs=5.1e-7)


def test_2995_unchanged_images_pass_a_tenth_of_a_point_and_2994_do_not():
    assert upper_loss_points(0, 0, 2995) == pytest.approx(0.099974, abs=5.1e-7)
    assert upper_loss_points(0, 0, 2994) == pytest.approx(0.100008, abs=5.1e-7)
    assert verdict(0, 0, 2995, 0.1) == "passed"
    assert verdict(0, 0, 2994, 0.1) == "too_few_images"


@pytest.mark.parametrize(
    ("tolerance", "n"), [(0.1, 2995), (0.25, 1197), (0.5, 598), (1.0, 299), (2.5, 119)]
)
def test_smallest_number_of_images_that_can_pass_passes_and_one_fewer_does_not(tolerance, n):
    assert smallest_passing_n(tolerance) == n
    assert verdict(0, 0, n, tolerance) == "passed"
    assert verdict(0, 0, n - 1, tolerance) == "too_few_images"


def test_the_samples_360_images_pass_up_to_three_lost_at_its_own_tolerance():
    verdicts = [verdict(lost, 0, 360, 2.5) for lost in range(5)]
    assert verdicts == ["passed"] * 4 + ["too_few_images"]


def test_a_loss_that_is_surely_above_the_tolerance_fails():
    assert verdict(20, 0, 20, 1.0) == "failed"
    assert verdict(60, 40, 10000, 0.029) == "failed"
    assert verdict(60, 40, 10000, 0.0292) == "too_few_images"


def test_the_smallest_number_of_images_that_would_decide_is_on_the_documented_grid():
    num = images_to_decide(1, 0, 360, 1.0)
    assert num == 568  # ceil(360 * 1.02^23), printed as "about 570"
    before = math.ceil(360 * 1.02**22)
    assert upper_loss_points(num / 360, 0, num) <= 1.0 < upper_loss_points(before / 360, 0, before)


def test_no_number_of_images_passes_a_rate_at_or_above_the_tolerance():
    assert images_to_decide(1, 0, 360, 0.1) is None
    assert images_to_decide(1, 0, 1000, 0.1) is None


def exact_pass_probability(n: int, lost_rate: float, gained_rate: float, tolerance: float) -> float:
    """Sum over every (lost, gained) that passes of its trinomial probability."""
    from scipy.stats import multinomial

    most = int(n * (lost_rate + gained_rate) * 3) + 30
    pairs = [(b, c) for b in range(most) for c in range(most) if b + c <= n]
    passing = [pair for pair in pairs if verdict(*pair, n, tolerance) == "passed"]
    counts = np.array([(b, c, n - b - c) for b, c in passing])
    rates = (lost_rate, gained_rate, 1 - lost_rate - gained_rate)
    return float(multinomial.pmf(counts, n, rates).sum())


@pytest.mark.parametrize(
    ("gained_rate", "tolerance"), [(0.0, 1.0), (0.002, 1.0), (0.01, 1.0), (0.0, 2.5), (0.005, 2.5)]
)
def test_where_the_true_loss_is_the_tolerance_it_passes_in_at_most_5_percent(
    gained_rate, tolerance
):
    rate = exact_pass_probability(1000, gained_rate + tolerance / 100, gained_rate, tolerance)
    assert rate <= 0.05


@pytest.mark.parametrize(("gained_rate", "tolerance"), [(0.0, 0.5), (0.004, 0.5), (0.01, 0.25)])
def test_simulated_artefacts_with_the_tolerated_loss_pass_in_at_most_5_percent(
    gained_rate, tolerance
):
    n, draws = 5000, 4000
    rng = np.random.default_rng(0)
    lost_rate = gained_rate + tolerance / 100
    rates = (lost_rate, gained_rate, 1 - lost_rate - gained_rate)
    counts, times = np.unique(rng.multinomial(n, rates, draws)[:, :2], axis=0, return_counts=True)
    passed = sum(
        int(num)
        for (lost, gained), num in zip(counts, times, strict=True)
        if verdict(int(lost), int(gained), n, tolerance) == "passed"
    )
    # Three standard errors of a rate of 5 % over the draws: the seed decides nothing.
    assert passed / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


@st.composite
def counts_and_n(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(2, 20000))
    lost = draw(st.integers(0, n - 1))
    return lost, draw(st.integers(0, n - 1 - lost)), n


@given(counts_and_n())
def test_one_more_lost_image_raises_the_limit_and_one_more_gained_lowers_it(counts):
    lost, gained, n = counts
    limit = upper_loss_points(lost, gained, n)
    # The limits are computed to about 1e-12 of a rate.
    assert upper_loss_points(lost + 1, gained, n) > limit - 1e-9
    assert upper_loss_points(lost, gained + 1, n) < limit + 1e-9


@given(counts_and_n())
def test_limits_enclose_what_was_seen_and_turn_around_with_lost_and_gained(counts):
    lost, gained, n = counts
    seen = 100 * (lost - gained) / n
    assert lower_loss_points(lost, gained, n) < seen < upper_loss_points(lost, gained, n)
    assert lower_loss_points(lost, gained, n) == -upper_loss_points(gained, lost, n)


@given(counts_and_n(), st.floats(0.01, 50))
def test_a_wider_tolerance_never_turns_a_pass_into_less(counts, tolerance):
    order = ("failed", "too_few_images", "passed")
    narrow, wide = verdict(*counts, tolerance), verdict(*counts, tolerance * 1.5)
    assert order.index(wide) >= order.index(narrow)


@given(st.integers(1, 5000), st.integers(0, 5000), st.floats(0.5, 0.999))
def test_without_gains_the_limit_is_clopper_pearsons(n, lost, confidence):
    lost = min(lost, n)
    exact = 1.0 if lost == n else beta.ppf(confidence, lost + 1, n - lost)
    # Two implementations of the inverse beta function.
    assert upper_loss_points(lost, 0, n, confidence) == pytest.approx(100 * exact, rel=1e-9)


def test_better_than_chance_is_asked_at_the_gates_confidence():
    assert is_above_chance(50, 360, 10)  # 13.9 %, its lower limit 10.9 %
    assert not is_above_chance(45, 360, 10)  # 12.5 %, but 9.7 %


def test_chance_is_told_from_knowledge_by_the_exact_binomial_test():
    from scipy.stats import binomtest

    for num_right in range(30, 60):
        p = binomtest(num_right, 360, 1 / 10, alternative="greater").pvalue
        assert is_above_chance(num_right, 360, 10, 0.99) == (p < 0.01)


def test_limits_of_disagreement_are_the_documented_ones():
    assert upper_points(0, 360) == pytest.approx(0.828695, abs=5.1e-7)
    assert upper_points(4, 360) == pytest.approx(2.524487, abs=5.1e-7)
    assert lower_points(4, 360) == pytest.approx(0.380398, abs=5.1e-7)
    assert upper_points(115, 10_000) == pytest.approx(1.341360, abs=5.1e-7)
    assert lower_points(295, 360) == pytest.approx(78.278189, abs=5.1e-7)


@pytest.mark.parametrize(
    ("limit", "changed", "n"),
    [
        *[(0.5, 0, 598), (0.5, 1, 1000), (0.5, 38, 10_000)],
        *[(1.0, 0, 299), (1.0, 6, 1197), (1.0, 83, 10_000)],
        *[(3.0, 10, 598), (3.0, 20, 1000), (3.0, 271, 10_000)],
        *[(8.0, 15, 299), (8.0, 20, 360), (8.0, 65, 1000), (8.0, 755, 10_000)],
    ],
)
def test_the_documented_number_of_changed_answers_passes_and_one_more_does_not(limit, changed, n):
    assert disagreement_verdict(changed, n, limit) == "passed"
    assert disagreement_verdict(changed + 1, n, limit) == "too_few_images"


def test_a_rate_of_changed_answers_that_is_surely_above_the_limit_fails():
    assert disagreement_verdict(295, 360, 8.0) == "failed"
    assert images_to_agree(295, 360, 8.0) is None


def test_the_number_of_images_that_would_show_agreement_shows_it():
    num = images_to_agree(21, 360, 8.0)
    assert num is not None
    assert upper_points(21 * num / 360, num) <= 8 < upper_points(21, 360)


@given(st.integers(1, 5000), st.floats(0, 0.1), st.sampled_from([0.5, 1.0, 3.0, 8.0]))
def test_a_server_which_has_no_scipy_gives_the_same_verdict_on_disagreement(n, rate, limit_points):
    agreement = Agreement(n, changed := int(rate * n))
    assert agreement.verdict(limit_points) == disagreement_verdict(changed, n, limit_points)
    needed, ours = images_to_agree(changed, n, limit_points), agreement.num_needed(limit_points)
    assert (needed is None) == (ours is None)
    assert ours is None or ours >= needed  # it counts whole pictures
