"""Single classes that lose, which the whole of a long-tailed evaluation hides."""

import numpy as np
import pytest

from irv2.convert.gate.classes import ClassChanges, class_changes
from irv2.convert.gate.limits import lower_loss_points, smallest_failing_n
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.tolerance import tolerance_for
from irv2.convert.gate.verdict import Judgement, judge
from irv2.ledger import Predictions

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SINGLES = dict.fromkeys(range(2, 10), 1)


def logits_of(predicted: np.ndarray) -> np.ndarray:
    return (14 * np.eye(10)[predicted]).astype(np.float32)


def case(images: dict[int, int], lost: dict[int, int]) -> tuple[Reference, np.ndarray]:
    """A reference that is always right on so many images of each class, and other answers."""
    labels = np.repeat(list(images), list(images.values()))
    predicted = labels.copy()
    for index, num in lost.items():
        rows = np.flatnonzero(labels == index)[:num]
        predicted[rows] = (index + 1) % 10
    names = tuple(f"{i:064x}" for i in range(len(labels)))
    return Reference.from_predictions(
        Predictions(names, names, labels, logits_of(labels))
    ), predicted


def found_in(images: dict[int, int], lost: dict[int, int], tolerance: float = 1.0) -> ClassChanges:
    reference, predicted = case(images, lost)
    return class_changes(
        reference,
        predicted == reference.labels,
        tolerance_points=tolerance,
        confidence=0.95,
        classes=NAMES,
    )


def judged(images: dict[int, int], lost: dict[int, int], **accepted: str) -> Judgement:
    reference, predicted = case(images, lost)
    tolerance = tolerance_for("int8", **accepted)
    return judge(reference, logits_of(predicted), "int8", tolerance, "test", NAMES)


def test_a_class_has_exact_limits_corrected_for_the_number_of_classes():
    found = found_in(dict.fromkeys(range(10), 36), {3: 10})
    change = found.each[3]
    assert (change.label, change.images, change.lost, change.gained) == ("three", 36, 10, 0)
    assert change.lower_loss_points == lower_loss_points(10, 0, 36, 1 - 0.05 / 10)
    assert found.worse == found.worst == [change]
    assert found.together is None


@pytest.mark.parametrize("tolerance", [0.1, 1.0, 30.0, 99.0])
@pytest.mark.parametrize("confidence", [0.95, 0.995, 0.99995])
def test_the_fewest_images_that_can_fail_fail_and_one_fewer_do_not(tolerance, confidence):
    n = smallest_failing_n(tolerance, confidence)
    assert lower_loss_points(n, 0, n, confidence) > tolerance
    if n > 1:
        assert lower_loss_points(n - 1, 0, n - 1, confidence) <= tolerance


def test_a_tolerance_of_100_points_ends_and_finds_nothing():
    assert found_in({0: 50, **SINGLES}, {0: 50, 2: 1}, tolerance=100).worse == []


def test_eight_single_images_that_are_all_lost_fail_together():
    """Seen passed: 8 of 3421 lost."""
    images = {0: 1700, 1: 1713, **SINGLES}
    judgement = judged(images, dict.fromkeys(SINGLES, 1))
    assert judgement.parity.top1.lost == 8
    assert judgement.parity.top1.upper_loss_points < 1
    assert judgement.parity.verdict == "failed"
    assert judgement.line.startswith(
        "int8 failed on 8 small classes together: 8 lost, 0 gained of 8; loss above "
    )
    assert judgement.line.endswith(" points (95 %, corrected for 10 classes), tolerance 1.0")


def test_small_classes_are_listed_with_what_they_can_show():
    judgement = judged({0: 1700, 1: 1713, **SINGLES}, {4: 1})
    assert judgement.parity.verdict == "passed"
    *_, text = judgement.classes.describe()
    assert text.startswith(
        "8 of 10 classes have fewer than the 5 images that can show a loss of their own: two (1), "
        "three (1), "
    )
    assert "8 small classes together: 1 lost, 0 gained of 8, a loss of " in text
    assert judgement.parity.worst_classes[0].label == "four"


def test_a_class_that_is_worse_fails_the_artefact_unless_it_is_only_to_be_reported():
    images = {0: 2000, 1: 2000, 2: 40}
    failed, reported = (judged(images, {2: 20}, per_class=how) for how in ("fail", "report"))
    assert failed.parity.top1.upper_loss_points < 1
    assert failed.line.startswith("int8 failed on class two: 20 lost, 0 gained of 40; loss above ")
    assert (failed.parity.verdict, reported.parity.verdict) == ("failed", "passed")
    [text] = reported.classes.describe()
    assert text.startswith("significantly worse: two: 20 lost, 0 gained of 40, a loss of ")
    assert reported.parity.worst_classes == failed.parity.worst_classes


def test_honest_artefacts_are_rarely_failed_by_a_class():
    """Every class loses as much as is tolerated: at most one run in twenty may fail."""
    rng = np.random.default_rng(0)
    images = dict.fromkeys(range(10), 300)
    runs = [found_in(images, {i: int(rng.binomial(300, 0.01)) for i in images}) for _ in range(200)]
    # Three standard errors above 5 %.
    assert sum(bool(found.worse) for found in runs) <= 200 * (0.05 + 3 * 0.0154)
