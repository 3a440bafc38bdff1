"""Where a wrong artefact departs: torch and ONNX compared block by block."""

import dataclasses
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from exported import Exported
from tiny_bundle import write_tiny_bundle
from tiny_checkpoint import CLASSES, PREPROCESS, fit_classifier

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.convert.candidate import Candidate, ExportOptions, make_candidate
from irv2.convert.export import judge_and_publish
from irv2.convert.gate.localize import compare_blocks, describe, explain
from irv2.convert.onnx.blocks import block_outputs
from irv2.convert.onnx.calibrate import calibrate
from irv2.convert.onnx.float32 import write_onnx
from irv2.convert.onnx.half import to_half
from irv2.convert.onnx.int8 import quantize
from irv2.convert.onnx.torch_blocks import torch_block_outputs
from irv2.data.dataset import find_images, open_split
from irv2.images.preprocess import preprocess
from irv2.model.slim import InceptionResNetV2Slim
from irv2.network_config import SlimConfig

BLOCKS = [
    *(f"stem.{i}" for i in range(6)),
    "blocks_a.0",
    "reduction_a",
    "blocks_b.0",
    "reduction_b",
    "blocks_c.0",
    "classifier",
]
SLIM_BLOCKS = [
    *(f"stem.{i}" for i in (0, 1, 2, 4, 5, 7)),
    "blocks_a.0",
    "reduction_a",
    "blocks_b.0",
    "reduction_b",
    "blocks_c.0",
    "head",
    "classifier",
]
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


@pytest.fixture(scope="module")
def slim(exported: Exported) -> Checkpoint:
    """TF-slim's network, which has pools between the blocks of its stem, and a head."""
    torch.manual_seed(0)
    config = SlimConfig(num_classes=len(CLASSES), blocks=(1, 1, 1), width=0.1)
    model = InceptionResNetV2Slim(config).eval()
    fit_classifier(model, open_split(exported.data, "val", CLASSES))
    return Checkpoint(
        model=model.config,
        state_dict=model.state_dict(),
        classes=CLASSES,
        setting="imported",
        epoch=0,
        preprocess=PREPROCESS,
        step=0,
    )


@pytest.fixture(scope="module")
def slim_files(slim, exported, tmp_path_factory) -> Path:
    """Its honest exports, FILE.onnx for each of the keys below."""
    folder = tmp_path_factory.mktemp("slim")
    write_onnx(slim, "0" * 64, folder / "fp32.onnx")
    model = onnx.load(folder / "fp32.onnx")
    onnx.save(to_half(model, "fp16"), folder / "fp16.onnx")
    images = find_images(exported.data).subset(range(0, 48, 4))
    ranges = calibrate(folder / "fp32.onnx", images, PREPROCESS, seed=0).ranges
    for target in ("cpu", "trt"):
        onnx.save(quantize(model, ranges, target), folder / f"int8-{target}.onnx")
    return folder


@pytest.mark.parametrize(
    ("name", "limit"),
    # Rounding through some twenty layers, as in test_precision.
    [("fp32", 1e-5), ("fp16", 5e-3), ("int8-cpu", 5e-2), ("int8-trt", 5e-2)],
)
def test_every_block_of_tf_slims_network_equals_torchs_in_every_precision(
    slim, slim_files, exported, name, limit
):
    paths = sorted(exported.data.glob("val/*/0.png"))  # of those that int8 is calibrated with
    images = np.stack([preprocess(path.read_bytes(), PREPROCESS) for path in paths])
    expected = torch_block_outputs(slim, images)
    found = block_outputs(slim_files / f"{name}.onnx", images)
    assert list(expected) == list(found) == SLIM_BLOCKS
    differences = compare_blocks(expected, found)
    assert list(differences) == SLIM_BLOCKS
    assert max(differences.values()) < limit


def test_a_wrong_export_of_tf_slims_network_is_rejected_with_the_block_named(
    slim, exported, tmp_path
):
    weights = slim.state_dict | {"head.0.weight": -slim.state_dict["head.0.weight"]}
    options = ExportOptions(precisions=("fp32", "fp16"), max_batch=2)
    (tmp_path / "new").mkdir()
    images = open_split(exported.data, "val", CLASSES)
    spoiled = dataclasses.replace(slim, state_dict=weights)
    wrong = make_candidate(spoiled, "a", tmp_path / "new", options, images)
    candidate = Candidate(
        checkpoint=slim, checkpoint_sha256="a", folder=wrong.folder, artifacts=wrong.artifacts
    )
    report = judge_and_publish(candidate, images, tmp_path / "b", options)
    assert report.failed == ["model.onnx", "model.fp16.onnx"]
    text = (tmp_path / "b.rejected" / "parity.md").read_text()
    assert text.count("departs from the reference in head") == 2


def test_blocks_of_other_shapes_are_left_out_and_named(exported, checkpoint):
    bundle = Bundle.open(exported.bundle)
    reference = torch_block_outputs(checkpoint, IMAGES)
    reference["stem.1"] = reference["stem.1"][:, :, 1:]
    line = explain(bundle, bundle.manifest.artifacts[0], IMAGES, lambda _: reference)
    assert "departs nowhere more than fp32 rounding explains" in line
    assert line.endswith(" Not found in it, or of another shape: stem.1.")
    line = explain(bundle, bundle.manifest.artifacts[0], IMAGES, lambda _: {})
    assert "its blocks can't be compared here (none fits the reference's)" in line


def test_a_graph_whose_layers_bear_no_known_names_is_said_to_be(tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny"))
    line = explain(bundle, bundle.manifest.artifacts[0], IMAGES, lambda _: {})
    assert "its blocks can't be compared here (none of its layers has a known name)" in line


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
