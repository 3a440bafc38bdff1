"""The limits that need no SciPy: SciPy's own, and how a verdict is put into words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irv2.measures.agreement import CONFIDENCE, Agreement, smallest_passing_n
from irv2.measures.estimates import lower_limit, upper_limit

counts = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_the_limits_are_those_of_the_incomplete_beta_function(drawn):
    changed, num = drawn
    found = Agreement(num, changed)
    # Logarithms of factorials of a million have nine decimals, and a limit is found to 1e-10 %.
    assert found.upper_percent == pytest.approx(
        100 * upper_limit(changed, num, CONFIDENCE), rel=1e-7, abs=1e-9
    )
    assert found.lower_percent == pytest.approx(
        100 * lower_limit(changed, num, CONFIDENCE), rel=1e-7, abs=1e-9
    )


@pytest.mark.parametrize(
    ("changed", "num", "upper"), [(0, 360, 0.828695), (4, 360, 2.524487), (115, 10000, 1.341360)]
)
def test_the_upper_limit_is_the_documented_one(changed, num, upper):
    assert Agreement(num, changed).upper_percent == pytest.approx(upper, abs=5.1e-7)


@pytest.mark.parametrize(("changed", "lower"), [(4, 0.380398), (295, 78.278189)])
def test_the_lower_limit_is_the_documented_one(changed, lower):
    assert Agreement(360, changed).lower_percent == pytest.approx(lower, abs=5.1e-7)


def test_of_no_pictures_nothing_is_known():
    nothing = Agreement(0, 0)
    assert (nothing.lower_percent, nothing.upper_percent) == (0.0, 100.0)
    assert nothing.verdict(1.0) == "too_few_images"
    assert nothing.num_needed(1.0) == 299


@pytest.mark.parametrize(("limit", "num"), [(0.1, 2995), (1.0, 299), (2.5, 119), (100.0, 1)])
def test_the_fewest_that_can_pass_do_and_one_fewer_does_not(limit, num):
    assert smallest_passing_n(limit) == num
    assert Agreement(num, 0).verdict(limit) == "passed"
    assert num == 1 or Agreement(num - 1, 0).verdict(limit) == "too_few_images"


@pytest.mark.parametrize(
    ("num", "changed", "line"),
    [
        (
            3000,
            12,
            "passed: 12 of 3000 answers differ from the served model's; disagreement below 0.65 "
            "points (95 %), limit 1",
        ),
        (
            3000,
            60,
            "failed: 60 of 3000 answers differ from the served model's; disagreement above 1.60 "
            "points (95 %), limit 1",
        ),
        (
            360,
            1,
            "too few images: 1 of 360 answers differ from the served model's; disagreement below "
            "1.31 points (95 %), limit 1; about 640 like these would decide",
        ),
        (
            360,
            5,
            "too few images: 5 of 360 answers differ from the served model's; disagreement below "
            "2.90 points (95 %), limit 1; at this rate no number of images would pass it",
        ),
    ],
)
def test_a_verdict_is_one_line(num, changed, line):
    assert Agreement(num, changed).line(1.0) == line
