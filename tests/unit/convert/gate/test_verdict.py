"""The gate's statistics against docs/gate.md: limits, edges, lines, and how often it errs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from irv2.convert.gate.reference import Reference
from irv2.convert.gate.verdict import (
    TOLERANCE_POINTS,
    Judgement,
    images_to_decide,
    is_above_chance,
    judge,
    lower_loss_points,
    smallest_passing_n,
    tolerance_for,
    upper_loss_points,
    verdict,
)
from irv2.errors import UsageError
from irv2.ledger import Predictions
from irv2.manifest import Precision

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


def reference_of(labels: np.ndarray, logits: np.ndarray) -> Reference:
    names = tuple(f"{i}.png" for i in range(len(labels)))
    sha256 = tuple(f"{i:064x}" for i in range(len(labels)))
    return Reference.from_predictions(Predictions(names, sha256, labels, logits.astype(np.float32)))


def answers(predicted: np.ndarray, num_classes: int = 10) -> np.ndarray:
    """Logits with 14 at the predicted class."""
    return (14 * np.eye(num_classes)[predicted]).astype(np.float32)


def judge_lost(num_lost: int, n: int, precision: Precision, **row: float) -> Judgement:
    labels = np.arange(n) % 10
    predicted = labels.copy()
    predicted[:num_lost] = (predicted[:num_lost] + 1) % 10
    reference = reference_of(labels, answers(labels))
    return judge(reference, answers(predicted), precision, tolerance_for(precision, **row), "test")


def test_line_of_identical_answers_gives_the_logit_difference_and_its_limit():
    labels = np.arange(360) % 10
    logits = answers(labels)
    judgement = judge(
        reference_of(labels, logits), logits + np.float32(1.1e-5), "fp32", tolerance_for("fp32"), ""
    )
    assert judgement.line == (
        "fp32 passed: identical on all 360 images (largest logit difference 1.1e-05, limit 1.4e-03)"
    )
    assert (judgement.parity.basis, judgement.parity.verdict) == ("identical", "passed")
    assert judgement.parity.agreement == 100


def test_line_of_the_sample_says_what_its_images_cannot_show():
    assert judge_lost(1, 360, "int8", is_sample=True).line == (
        "int8 passed: 1 lost, 0 gained of 360; loss below 1.31 points (95 %), tolerance 2.5 "
        "(built-in sample; 360 images can't show less than 0.83)"
    )


def test_line_of_too_few_images_says_how_many_would_decide():
    assert judge_lost(1, 360, "int8").line == (
        "int8 too few images: 1 lost, 0 gained of 360; loss below 1.31 points (95 %), "
        "tolerance 1.0; about 570 like these would decide"
    )


def test_line_of_a_hopeless_rate_says_that_no_number_would_pass():
    judgement = judge_lost(1, 360, "fp32", is_sample=True)
    assert judgement.parity.verdict == "too_few_images"
    assert judgement.line.endswith("tolerance 0.1; at this rate no number of images would pass it")


def judge_both_lost(top1: int, top5: int, n: int) -> Judgement:
    """`top1` images lose their best class, `top5` others their place among the five best."""
    labels = np.zeros(n, np.int64)
    before = np.tile(np.float32([9, 8, 7, 6, 5, 1, 0, 0]), (n, 1))
    before[top1 : top1 + top5, 0] = 5.5  # fourth
    after = before.copy()
    after[:top1, 0] = 7.5  # second
    after[top1 : top1 + top5, 0] = 0.5  # seventh
    return judge(reference_of(labels, before), after, "int8", tolerance_for("int8"), "test")


def test_line_of_two_undecided_counts_gives_the_number_that_decides_both():
    only_top1, both = judge_both_lost(1, 1, 360), judge_both_lost(1, 2, 360)  # 568, 1469 images
    assert both.parity.verdict == only_top1.parity.verdict == "too_few_images"
    assert only_top1.line.endswith("tolerance 1.0; about 570 like these would decide")
    assert both.line == (
        "int8 too few images: 1 lost, 0 gained of 360; loss below 1.31 points (95 %), "
        "tolerance 1.0; for top-5 about 1500 like these would decide"
    )


def test_line_says_that_no_number_would_pass_top5_where_one_would_pass_top1():
    assert judge_both_lost(1, 4, 360).line.endswith(
        "tolerance 1.0; for top-5 at this rate no number of images would pass it"
    )


def test_line_about_top5_alone_names_it_once():
    line = judge_both_lost(0, 2, 360).line
    assert line.startswith("int8 too few images on top-5: 2 lost")
    assert line.endswith("; about 1500 like these would decide")


def test_line_of_a_failure_gives_the_lower_limit():
    assert judge_lost(20, 20, "int8").line == (
        "int8 failed: 20 lost, 0 gained of 20; loss above 80.33 points (95 %), tolerance 1.0"
    )


def test_unchanged_decisions_with_logits_off_by_more_than_the_limit_go_by_interval():
    labels = np.arange(360) % 10
    logits = answers(labels)
    judgement = judge(
        reference_of(labels, logits), logits * np.float32(1.001), "fp32", tolerance_for("fp32"), ""
    )
    assert (judgement.parity.basis, judgement.parity.verdict) == ("interval", "too_few_images")
    assert judgement.line.endswith("about 3000 like these would decide")


def test_no_other_precision_passes_as_identical():
    labels = np.arange(100) % 10
    logits = answers(labels)
    parity = judge(reference_of(labels, logits), logits, "fp16", tolerance_for("fp16"), "").parity
    assert (parity.basis, parity.verdict) == ("interval", "too_few_images")


def test_top5_alone_can_fail_an_artefact_and_the_line_says_so():
    labels = np.zeros(400, np.int64)
    before = np.tile(np.float32([5, 9, 8, 7, 6, 1, 0, 0]), (400, 1))  # the label comes fifth
    after = np.tile(np.float32([5, 9, 8, 7, 6, 5.5, 0, 0]), (400, 1))  # and now sixth
    judgement = judge(reference_of(labels, before), after, "int8", tolerance_for("int8"), "")
    assert judgement.parity.verdict == "failed"
    assert (judgement.parity.top1.lost, judgement.parity.top5.lost) == (0, 400)
    assert judgement.line.startswith("int8 failed on top-5: 400 lost")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_logit_that_is_not_finite_fails_the_artefact_at_any_n(value):
    labels = np.arange(5000) % 10
    logits = answers(labels)
    broken = logits.copy()
    broken[7, 3] = value
    judgement = judge(reference_of(labels, logits), broken, "int8", tolerance_for("int8"), "")
    assert judgement.parity.verdict == "failed"
    assert judgement.line == "int8 failed: 1 of 5000 images gave logits that are not finite"
    assert np.isfinite(judgement.parity.max_abs_logit_diff)


@pytest.mark.parametrize(("precision", "points"), TOLERANCE_POINTS.items())
def test_tolerances_are_the_tables_and_the_samples_row_spares_fp32(precision, points):
    assert tolerance_for(precision).top1_points == points
    sample = tolerance_for(precision, is_sample=True)
    assert sample.top5_points == (0.1 if precision == "fp32" else 2.5)
    assert sample.is_sample == (precision != "fp32")


def test_a_tolerance_of_the_users_replaces_the_samples_row_but_not_its_remark():
    tolerance = tolerance_for("int8", is_sample=True, top1_points=5.0)
    assert (tolerance.top1_points, tolerance.top5_points) == (5.0, 2.5)
    assert judge_lost(1, 360, "int8", is_sample=True, top1_points=5.0).line == (
        "int8 passed: 1 lost, 0 gained of 360; loss below 1.31 points (95 %), tolerance 5.0 "
        "(built-in sample; 360 images can't show less than 0.83)"
    )


@pytest.mark.parametrize("wrong", [{"top1_points": 0.0}, {"confidence": 1.0}])
def test_a_tolerance_or_confidence_that_proves_nothing_is_refused(wrong):
    with pytest.raises(UsageError):
        tolerance_for("fp32", **wrong)


def test_better_than_chance_is_asked_at_the_gates_confidence():
    assert is_above_chance(50, 360, 10)  # 13.9 %, its lower limit 10.9 %
    assert not is_above_chance(45, 360, 10)  # 12.5 %, but 9.7 %
