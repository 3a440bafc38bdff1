"""The gate's verdict against docs/gate.md: what passes, what fails, and the line that says so."""

from dataclasses import replace

import numpy as np
import pytest

from irv2.convert.gate.reference import Reference
from irv2.convert.gate.tolerance import tolerance_for
from irv2.convert.gate.verdict import Judgement, judge
from irv2.ledger import Predictions
from irv2.manifest import Precision


def reference_of(labels: np.ndarray, logits: np.ndarray) -> Reference:
    names = tuple(f"{i}.png" for i in range(len(labels)))
    sha256 = tuple(f"{i:064x}" for i in range(len(labels)))
    return Reference.from_predictions(Predictions(names, sha256, labels, logits.astype(np.float32)))


def answers(predicted: np.ndarray, num_classes: int = 10) -> np.ndarray:
    """Logits with 14 at the predicted class."""
    return (14 * np.eye(num_classes)[predicted]).astype(np.float32)


def nudged(logits: np.ndarray, by: float) -> np.ndarray:
    """Another logit for the first class, which is not the best of most images."""
    return logits + np.float32(by) * np.eye(logits.shape[1], dtype=np.float32)[0]


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
        reference_of(labels, logits), nudged(logits, 1.1e-5), "fp32", tolerance_for("fp32"), ""
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


def test_a_tolerance_of_the_users_replaces_the_samples_row_but_not_its_remark():
    tolerance = tolerance_for("int8", is_sample=True, top1_points=5.0)
    assert (tolerance.top1_points, tolerance.top5_points) == (5.0, 2.5)
    assert judge_lost(1, 360, "int8", is_sample=True, top1_points=5.0).line == (
        "int8 passed: 1 lost, 0 gained of 360; loss below 1.31 points (95 %), tolerance 5.0 "
        "(built-in sample; 360 images can't show less than 0.83)"
    )


def judge_moved(num_moved: int, n: int, precision: Precision, **row: float) -> Judgement:
    """The checkpoint is right on every other image; `num_moved` wrong answers become others."""
    labels = np.arange(n) % 10
    before = np.where(np.arange(n) % 2, (labels + 1) % 10, labels)
    after = before.copy()
    moved = np.flatnonzero(before != labels)[:num_moved]
    after[moved] = (labels[moved] + 2) % 10
    reference = reference_of(labels, answers(before))
    return judge(reference, answers(after), precision, tolerance_for(precision, **row), "test")


def test_answers_that_change_without_a_loss_fail_by_the_limit_of_disagreement():
    judgement = judge_moved(150, 1000, "int8")
    assert (judgement.parity.top1.lost, judgement.parity.top1.gained) == (0, 0)
    assert judgement.line == (
        "int8 failed on agreement: 150 of 1000 answers differ from the checkpoint's; disagreement "
        "above 13.17 points (95 %), limit 8.0"
    )
    found = judgement.parity.disagreement
    assert (found.changed, found.limit_points, judgement.parity.agreement) == (150, 8.0, 85.0)
    assert found.upper_points == pytest.approx(16.98, abs=0.01)


def test_too_few_images_to_show_agreement_says_how_many_would():
    judgement = judge_moved(70, 1000, "int8")
    assert judgement.parity.verdict == "too_few_images"
    assert judgement.line.startswith("int8 too few images on agreement: 70 of 1000 answers differ ")
    assert judgement.line.endswith(", limit 8.0; about 2100 like these would decide")


def test_fp32_that_is_not_identical_may_change_one_answer_of_ten_thousand():
    labels = np.arange(10_000) % 10
    before = answers(labels)
    before[::2] = answers((labels[::2] + 1) % 10)
    after = before * np.float32(1.001)
    assert (
        judge(reference_of(labels, before), after, "fp32", tolerance_for("fp32"), "").parity.verdict
        == "passed"
    )
    assert judge_moved(60, 10_000, "fp32").parity.verdict == "too_few_images"
    assert judge_moved(80, 10_000, "fp32").parity.verdict == "failed"


def test_labels_in_another_order_and_a_broken_int8_are_found_twice():
    """Seen published: the checkpoint right on 1 of 360, the artefact on 18 % as the checkpoint."""
    n = 360
    labels = np.arange(n) % 10
    before = (labels + 1) % 10
    before[0] = labels[0]
    after = before.copy()
    after[:261] = labels[:261]
    after[0] = 5
    after[35:261] = (labels[35:261] + 2) % 10
    judgement = judge(
        reference_of(labels, answers(before)),
        answers(after),
        "int8",
        tolerance_for("int8", is_sample=True),
        "",
    )
    assert (judgement.parity.top1.lost, judgement.parity.top1.gained) == (1, 34)
    assert judgement.parity.verdict == "failed"
    assert judgement.line.startswith("int8 failed on agreement: 261 of 360 answers differ")
    assert "; the checkpoint is right on 1 of 360 images, not shown to be better" in judgement.line


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_checkpoint_that_may_be_guessing_fails_even_an_identical_artefact(precision):
    labels = np.arange(360) % 10
    logits = answers(np.zeros(360, np.int64))  # right on a tenth
    reference = reference_of(labels, logits)
    tolerance = tolerance_for(precision, is_sample=True)
    refused = judge(reference, logits, precision, tolerance, "")
    assert refused.parity.verdict == "failed"
    assert refused.line == (
        f"{precision} failed: the checkpoint is right on 36 of 360 images, not shown to be better "
        "than chance (10 %); export one that has learned, judge on more images, or pass "
        "--accept-chance"
    )
    tolerance = tolerance_for(precision, is_sample=True, accept_chance=True)
    accepted = judge(reference, logits, precision, tolerance, "")
    assert (accepted.parity.verdict, accepted.parity.at_chance) == ("passed", True)
    assert accepted.line.endswith("not shown to be better than chance (10 %), which was accepted")


def knowing(n: int, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and logits as of a trained network: noise, and the label's class well ahead."""
    labels = np.arange(n) % num_classes
    noise = np.random.default_rng(0).normal(size=(n, num_classes))
    return labels, (noise + 8 * np.eye(num_classes)[labels]).astype(np.float32)


@pytest.mark.parametrize("mask", [0, -30, -100, -1e4, -1e9])
@pytest.mark.parametrize("is_saved", [False, True], ids=["fresh", "on file"])
def test_a_masked_class_of_any_size_does_not_make_other_logits_identical(mask, is_saved):
    labels, logits = knowing(10, num_classes=11)
    logits[:, 10] += np.float32(mask)
    reference = reference_of(labels, logits)
    if is_saved:
        reference = replace(reference, logits=None)
    masked = np.spacing(np.abs(logits)) * (np.arange(11) == 10)  # rounds differently
    for by, basis in ((1e-5, "identical"), (0.01, "interval")):
        found = nudged(logits, by) + masked
        parity = judge(reference, found, "fp32", tolerance_for("fp32"), "").parity
        assert (parity.basis, parity.agreement) == (basis, 100)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1, 1e3, 1e6])
def test_scaled_logits_are_held_to_a_scaled_limit(scale):
    labels, logits = knowing(100)
    reference = reference_of(labels, logits * np.float32(scale))
    for by, basis in ((1e-5, "identical"), (0.01, "interval")):
        found = nudged(logits, by) * np.float32(scale)
        assert judge(reference, found, "fp32", tolerance_for("fp32"), "").parity.basis == basis


def test_a_constant_added_to_all_logits_of_an_image_changes_nothing():
    labels, logits = knowing(100)
    constants = np.linspace(-50, 50, 100, dtype=np.float32)[:, None]
    parity = judge(
        reference_of(labels, logits), logits + constants, "fp32", tolerance_for("fp32"), ""
    ).parity
    assert parity.basis == "identical"
    assert parity.max_abs_logit_diff > 49


def test_where_every_image_is_a_tie_only_equal_logits_are_identical():
    labels = np.zeros(20, np.int64)
    logits = np.tile(np.float32([1, 1, 0]), (20, 1))
    reference = reference_of(labels, logits)
    assert judge(reference, logits, "fp32", tolerance_for("fp32"), "").parity.basis == "identical"
    other = judge(reference, nudged(logits, 1e-6), "fp32", tolerance_for("fp32"), "")
    assert other.parity.basis == "interval"
