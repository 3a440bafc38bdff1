"""Batch invariance: what is asked, what counts as a change, and what it costs an artefact."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import passed_parity, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.convert.gate.invariance import batch_sizes, check, describe, load_probes, with_invariance
from irv2.convert.gate.verdict import Judgement
from irv2.data.dataset import open_split
from irv2.images.preprocess import Preprocess
from irv2.ledger import Predictions
from irv2.runners.base import Runner
from irv2.runners.choose import open_best

UP_TO_8 = [1, 2, 3, 4, 5, 6, 7, 8]
PROBES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)


class MeanRunner(Runner):
    """Logits are the means of three channels; what `spoil` gets is what it may change."""

    backend, image_size, num_classes, max_batch = "test", 4, 3, 64

    def __init__(self, spoil=lambda logits: logits):
        self.spoil, self.sizes = spoil, []

    def run(self, images):
        self.sizes.append(len(images))
        return self.spoil(images.mean((1, 2)).astype(np.float32))


def reverse_above(size):
    return lambda logits: logits[:, ::-1] if len(logits) > size else logits


def reverse_at(size):
    return lambda logits: logits[:, ::-1] if len(logits) == size else logits


def moved_by_four_margins(logits):
    """The best logits of a batch of 5 rise."""
    return logits + 4 * (logits == logits.max(1, keepdims=True)) * (len(logits) == 5)


class Rereading(MeanRunner):
    """Answers for the batch before, where that was larger."""

    def run(self, images):
        before = self.sizes[-1] if self.sizes else 0
        logits = super().run(images)
        return np.roll(logits, 1, axis=1) if before > 32 > len(images) else logits


def first_row_everywhere(logits):
    return np.broadcast_to(logits[:1], logits.shape)


def last_row_is_lost(logits):
    lost = logits.copy()
    lost[-1] *= -1 if len(logits) > 1 else 1
    return lost


def overflow_when_full(logits):
    return np.full_like(logits, np.nan) if len(logits) == 64 else logits


@pytest.mark.parametrize(
    ("max_batch", "profiles", "sizes"),
    [
        (1, [], [1]),
        (2, [], [1, 2]),
        (6, [], [1, 2, 3, 4, 5, 6]),
        (12, [], [*UP_TO_8, 9, 11, 12]),
        (64, [(1, 8, 64)], [*UP_TO_8, 9, 13, 15, 16, 17, 25, 31, 32, 33, 49, 63, 64]),
        (48, [(1, 4, 12), (13, 24, 48)],
         [*UP_TO_8, 9, 12, 13, 15, 16, 17, 24, 25, 31, 32, 33, 47, 48]),
    ],
)  # fmt: skip
def test_sizes_are_all_of_a_cpu_and_a_cover_of_those_above(max_batch, profiles, sizes):
    assert batch_sizes(max_batch, profiles) == sizes


def test_sizes_ascend_then_each_image_is_alone_then_they_descend():
    runner = MeanRunner()
    check(runner, PROBES, 64)
    up = batch_sizes(64)
    assert runner.sizes == [1] * 8 + up + [1] * 8 + up[::-1]
    assert sum(runner.sizes) == 822, "what docs/gate.md says it costs"


def test_an_honest_artefact_is_certified_up_to_its_largest_batch_and_no_further():
    runner = MeanRunner()
    found = check(runner, PROBES, 12)
    assert (found.changed, found.first_changed_batch) == (0, None)
    assert found.batch_sizes == batch_sizes(12)
    assert max(runner.sizes) == 12
    assert found.max_probability_diff == 0
    assert "the same answers" in describe(found)


@pytest.mark.parametrize(
    ("spoil", "first"),
    [
        (reverse_above(1), 2),  # wrong only for batches above one
        (reverse_above(32), 33),  # only in the last profile
        *((reverse_at(size), size) for size in (3, 5, 6, 7, 9, 15, 17, 31, 63)),
        (moved_by_four_margins, 5),  # the answers stay
        (first_row_everywhere, 2),  # a broadcast; repeating one image can't show it
        (last_row_is_lost, 2),
        (overflow_when_full, 64),
    ],
)
def test_an_answer_that_depends_on_its_batch_is_seen_with_the_batch_where_it_starts(spoil, first):
    found = check(MeanRunner(spoil), PROBES, 64)
    assert found.changed > 0
    assert found.first_changed_batch == first
    assert 0 < found.max_probability_diff <= 1


def test_an_image_alone_after_a_large_batch_is_seen_too(tmp_path):
    [artifact] = Bundle.open(write_tiny_bundle(tmp_path / "b")).manifest.artifacts
    found = check(Rereading(), PROBES, 64)
    assert found.first_changed_batch == 1
    failed = with_invariance(Judgement(passed_parity(), "fp32 passed: ..."), artifact, found)
    assert "even alone, after other batches" in failed.line


def test_two_classes_as_close_as_rounding_may_turn_are_no_change():
    def tie(logits):
        low, high = np.float32([[1, 1 + 1e-5, 0]]), np.float32([[1 + 1e-5, 1, 0]])
        return np.repeat(low if len(logits) == 1 else high, len(logits), axis=0)

    found = check(MeanRunner(tie), PROBES, 4)
    assert found.changed == 0
    assert found.max_probability_diff > 0


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_what_counts_as_a_tie_follows_the_scale_of_the_logits(scale):
    """Of tiny logits all probabilities are nearly equal; that makes no tie of any two."""

    def scaled(logits):
        return reverse_above(1)(logits) * np.float32(scale)

    assert check(MeanRunner(scaled), PROBES, 4, unit=10 * scale).changed > 0


def test_a_change_fails_an_artefact_whose_decisions_passed(tmp_path):
    [artifact] = Bundle.open(write_tiny_bundle(tmp_path / "b")).manifest.artifacts
    passed = Judgement(passed_parity(), "fp32 passed: ...")
    found = check(MeanRunner(reverse_above(1)), PROBES, 16)
    failed = with_invariance(passed, artifact, found)
    assert failed.parity.verdict == "failed"
    assert failed.invariance == found
    assert "answers change with the batch they are in, from batches of 2 on" in failed.line
    kept = with_invariance(passed, artifact, check(MeanRunner(), PROBES, 16))
    assert kept == dataclasses.replace(passed, invariance=kept.invariance)


def test_probes_are_of_as_many_classes_as_can_be(tmp_path):
    for name in "abcd":
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(5):
            colour = (40 * "abcd".index(name), 9 * i, 0)
            Image.new("RGB", (75, 75), colour).save(tmp_path / "val" / name / f"{i}.png")
    images = open_split(tmp_path, "val")
    ledger = Predictions(images.files, ("",) * 20, images.labels, np.zeros((20, 4), np.float32))
    probes = load_probes(images, ledger, Preprocess(resize=75, crop=75))
    assert probes.shape == (8, 75, 75, 3)
    assert sorted(probes[:, 0, 0, 0].tolist()) == [0, 0, 40, 40, 80, 80, 120, 120]


def test_a_real_model_gives_the_same_answers_in_every_batch(tmp_path: Path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b"))
    images = np.random.default_rng(0).integers(0, 256, (8, 75, 75, 3), dtype=np.uint8)
    with open_best(bundle.path, bundle.artifacts).runner as runner:
        found = check(runner, images, 16)
    assert found.changed == 0
    # Float32 sums of 27 products in another order.
    assert found.max_probability_diff < 1e-5
