"""The gate against faults that exports have had: a short version of tests/long/seeded_faults.py."""

from pathlib import Path

import faults
import numpy as np
import onnx
import pytest
from exported import Exported
from seeded_faults import Bf16Runner
from tiny_checkpoint import CLASSES, PREPROCESS

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.convert.gate import invariance
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.reference_cache import classify_with_reference
from irv2.convert.gate.tolerance import tolerance_for
from irv2.convert.gate.verdict import Judgement, judge
from irv2.convert.onnx.calibrate import calibrate
from irv2.convert.onnx.int8 import quantize
from irv2.data.dataset import find_images, open_split
from irv2.evaluate import classify_folder
from irv2.runners.base import Runner
from irv2.runners.onnx import OnnxRunner
from irv2.runners.torch import TorchRunner


@pytest.fixture(scope="module")
def checkpoint(exported: Exported) -> Checkpoint:
    return Checkpoint.load(exported.checkpoint_path)


def judged(exported: Exported, checkpoint: Checkpoint, runner: Runner) -> Judgement:
    """One artefact as an export judges it: decisions, then batches of up to 64."""
    images = open_split(exported.data, "val", CLASSES)
    [artifact] = Bundle.open(exported.bundle).manifest.artifacts
    answers, ledger = classify_with_reference(checkpoint, "faults", [runner], images)
    reference = Reference.from_predictions(answers)
    judgement = judge(reference, ledger.logits, "fp32", tolerance_for("fp32"), runner.backend)
    probes = invariance.load_probes(images, ledger, checkpoint.preprocess)
    return invariance.with_invariance(judgement, artifact, invariance.check(runner, probes, 64))


def spoiled(exported: Exported, fault: faults.Fault, path: Path) -> OnnxRunner:
    model = onnx.load(exported.bundle / "model.onnx")
    fault(model)
    onnx.save(model, path)
    return OnnxRunner(path)


def test_an_honest_export_passes(exported, checkpoint):
    with OnnxRunner(exported.bundle / "model.onnx") as runner:
        assert judged(exported, checkpoint, runner).parity.basis == "identical"


@pytest.mark.parametrize(
    "fault",
    [
        faults.no_mean,
        faults.bgr,
        faults.classes_swapped,
        faults.classes_shifted,
        faults.block_perturbed("blocks_b.0", 2),
        faults.int8_weights(1 / 8),
    ],
    ids=["no mean", "BGR", "swapped", "shifted", "a block perturbed", "absurd scales"],
)
def test_a_gross_fault_fails_on_48_images(exported, checkpoint, tmp_path, fault):
    with spoiled(exported, fault, tmp_path / "m.onnx") as runner:
        assert judged(exported, checkpoint, runner).parity.verdict == "failed"


@pytest.mark.parametrize(
    "fault", [faults.mean_off_by(1), faults.block_perturbed("blocks_b.0", 0.1)]
)
def test_a_slight_fault_is_never_taken_for_identical(exported, checkpoint, tmp_path, fault):
    with spoiled(exported, fault, tmp_path / "m.onnx") as runner:
        assert judged(exported, checkpoint, runner).parity.verdict != "passed"


@pytest.mark.parametrize("target", ["cpu", "trt"])
@pytest.mark.parametrize("factor", [1, 1 / 8, 16])
def test_int8_with_absurd_activation_ranges_fails(exported, checkpoint, tmp_path, target, factor):
    model = onnx.load(exported.bundle / "model.onnx")
    images = find_images(exported.data).subset(range(0, 48, 2))
    ranges = calibrate(exported.bundle / "model.onnx", images, PREPROCESS, seed=0).ranges
    onnx.save(quantize(model, faults.scaled(ranges, factor), target), tmp_path / "m.onnx")
    with OnnxRunner(tmp_path / "m.onnx") as runner:
        verdict = judged(exported, checkpoint, runner).parity.verdict
    assert (verdict == "failed") == (factor != 1)


def test_bf16_by_torch_rounds_and_no_more(exported, checkpoint):
    images = open_split(exported.data, "val", CLASSES)
    runners = [TorchRunner(checkpoint), Bf16Runner(checkpoint)]
    full, half = (ledger.logits for ledger in classify_folder(runners, images, PREPROCESS))
    # Some twenty layers round by 4e-3 each.
    assert 1e-4 < np.abs(half - full).max() / np.abs(full).max() < 5e-2


@pytest.mark.parametrize("size", [1, 32])
def test_an_engine_that_is_wrong_in_larger_batches_fails(exported, checkpoint, size):
    """Above 32 the evaluation itself never goes: only the batches that are tried show it."""
    with OnnxRunner(exported.bundle / "model.onnx") as honest:
        found = judged(exported, checkpoint, faults.RowsMixedUp(honest, range(size + 1, 1000)))
    assert found.parity.verdict == "failed"
    assert found.invariance is not None
    assert found.invariance.first_changed_batch == size + 1


def test_stale_weights_fail(exported, checkpoint, tmp_path):
    older = onnx.load(exported.bundle / "model.onnx")
    rng = np.random.default_rng(0)
    for name in faults.names_of_weights(older):
        with faults.weight(older, name) as value:
            value *= 1 + 0.3 * rng.standard_normal(value.shape, np.float32)
    with spoiled(exported, faults.stale(older), tmp_path / "m.onnx") as runner:
        assert judged(exported, checkpoint, runner).parity.verdict != "passed"
