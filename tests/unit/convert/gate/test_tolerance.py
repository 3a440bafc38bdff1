"""What is accepted of an artefact: the tables, and what a user puts in their place."""

import pytest

from irv2.convert.gate.tolerance import DISAGREEMENT_POINTS, TOLERANCE_POINTS, tolerance_for
from irv2.errors import UsageError


@pytest.mark.parametrize(("precision", "points"), TOLERANCE_POINTS.items())
def test_tolerances_are_the_tables_and_the_samples_row_spares_fp32(precision, points):
    assert tolerance_for(precision).top1_points == points
    sample = tolerance_for(precision, is_sample=True)
    assert sample.top5_points == (0.1 if precision == "fp32" else 2.5)
    assert sample.is_sample == (precision != "fp32")


@pytest.mark.parametrize(("precision", "points"), DISAGREEMENT_POINTS.items())
def test_limits_of_disagreement_are_the_tables_and_the_samples_row_spares_fp32(precision, points):
    assert tolerance_for(precision).disagreement_points == points
    sample = tolerance_for(precision, is_sample=True)
    assert sample.disagreement_points == (0.5 if precision == "fp32" else 8.0)


def test_an_accepted_loss_is_an_accepted_disagreement_unless_the_user_names_one():
    assert tolerance_for("int8", top1_points=30.0).disagreement_points == 30
    named = tolerance_for("int8", top1_points=30.0, disagreement_points=2.0)
    assert named.disagreement_points == 2


@pytest.mark.parametrize(
    "wrong", [{"top1_points": 0.0}, {"disagreement_points": 0.0}, {"confidence": 1.0}]
)
def test_a_tolerance_or_confidence_that_proves_nothing_is_refused(wrong):
    with pytest.raises(UsageError):
        tolerance_for("fp32", **wrong)


@pytest.mark.parametrize(("precision", "fewest"), [("fp32", 2995), ("fp16", 1197), ("int8", 299)])
def test_the_fewest_images_that_can_pass_are_those_of_the_table(precision, fewest):
    assert tolerance_for(precision).fewest_images == fewest  # docs/gate.md


def test_the_strictest_limit_decides_how_many_images_can_pass():
    assert tolerance_for("int8", top5_points=0.1).fewest_images == 2995
