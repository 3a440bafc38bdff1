"""Where a wrong artefact departs: torch and ONNX compared block by block."""

from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from tiny_checkpoint import Exported

from convert.localize import block_outputs, compare_blocks, describe, explain
from convert.torch_blocks import torch_block_outputs
from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint

BLOCKS = [*(f"stem.{i}" for i in range(6)), "blocks_a.0", "reduction_a", "blocks_b.0",
          "reduction_b", "blocks_c.0", "classifier"]  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(exported: Exported) -> Checkpoint:
    return Checkpoint.load(exported.checkpoint_path)


def test_every_block_of_an_honest_export_equals_torchs(exported, checkpoint):
    expected = torch_block_outputs(checkpoint, IMAGES)
    found = block_outputs(exported.bundle / "model.onnx", IMAGES)
    assert list(expected) == list(found) == BLOCKS
    differences = compare_blocks(expected, found)
    assert list(differences) == BLOCKS
    # Float32, summed in another order and with batch norm folded.
    assert max(differences.values()) < 1e-5
    assert "nowhere more than fp32 rounding" in describe(differences, "fp32")


@pytest.mark.parametrize(
    ("weight", "block"),
    [
        ("model.stem.4.branches.1.2.0.weight", "stem.4"),
        ("model.blocks_b.0.project.0.weight", "blocks_b.0"),
        ("model.classifier.weight", "classifier"),
    ],
)
def test_the_block_with_a_wrong_weight_is_named(exported, checkpoint, tmp_path, weight, block):
    model = onnx.load(exported.bundle / "model.onnx")
    [initializer] = [value for value in model.graph.initializer if value.name == weight]
    wrong = onnx.numpy_helper.to_array(initializer) * np.float32(1.5)
    initializer.CopyFrom(onnx.numpy_helper.from_array(wrong, weight))
    onnx.save(model, tmp_path / "model.onnx")
    bundle = Bundle(tmp_path, Bundle.open(exported.bundle).manifest)
    line = explain(
        bundle, bundle.manifest.artifacts[0], IMAGES, partial(torch_block_outputs, checkpoint)
    )
    assert f"model.onnx departs from the reference in {block}: relative difference" in line
    assert "To try: export again" in line


def test_an_engine_is_referred_to_the_model_it_was_built_from(exported):
    bundle = Bundle.open(exported.bundle)
    [parent] = bundle.manifest.artifacts
    plan = msgspec.structs.replace(
        parent, file="model.plan", format="tensorrt", built_from=parent.sha256
    )
    line = explain(bundle, plan, IMAGES, lambda _: {})
    assert line.startswith("model.plan: blocks of an engine can't be compared; where model.onnx")


def test_what_is_not_finite_departs(exported):
    assert "departs from the reference in b" in describe({"a": 0.0, "b": float("nan")}, "int8")


def test_a_file_that_cannot_be_run_is_said_to_be(exported, tmp_path: Path):
    bundle = Bundle(tmp_path, Bundle.open(exported.bundle).manifest)
    whole = (exported.bundle / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole.replace(b"Transpose", b"Transpoze"))
    line = explain(bundle, bundle.manifest.artifacts[0], IMAGES, lambda _: {})
    assert "its blocks can't be compared here" in line
