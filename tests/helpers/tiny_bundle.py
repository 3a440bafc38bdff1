"""A real bundle in milliseconds, without torch: a linear classifier of an image's mean colours.

The model looks at the means of nine regions, so that photographs get different answers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.images.preprocess import Preprocess
from irv2.manifest import (
    MANIFEST,
    Artifact,
    ErrorChange,
    Evidence,
    Invariance,
    Parity,
    Source,
    manifest_json,
    new_manifest,
)
from irv2.runners.onnx import OnnxRunner
from irv2.self_test import SELF_TEST, SelfTest
from irv2.system.files import file_sha256

SIDE = 75
CLASSES = [f"class {i}" for i in range(10)]
PREPROCESS = Preprocess(resize=SIDE, crop=SIDE)


def write_tiny_bundle(
    folder: Path,
    *,
    seed: int = 0,
    max_batch: int = 16,
    verdict: str | None = "passed",
    passes_self_test: bool = True,
    batch_sizes: list[int] | None = None,
    preprocess: Preprocess = PREPROCESS,
    mask: float = 0.0,
    is_fragile: bool = False,
) -> Path:
    """Write a bundle with one fp32 ONNX artefact to `folder` and return it.

    `verdict` None leaves the artefact unverified; `seed` gives another model; a bundle that does
    not pass its self-test says that its engine answers wrongly; `batch_sizes` are certified;
    `preprocess` crops to SIDE; `mask` is added to the last class's logit; a fragile one fails on
    black pictures.
    """
    folder.mkdir(parents=True)
    model_path = folder / "model.onnx"
    onnx.save(tiny_model(seed, mask, is_fragile=is_fragile), model_path)
    artifact = Artifact(
        file=model_path.name,
        sha256=file_sha256(model_path),
        format="onnx",
        precision="fp32",
        max_batch=max_batch,
        built_from="0" * 64,
        built_with={"onnx": onnx.__version__},
        gpu=None,
        parity=passed_parity(verdict) if verdict else None,
        invariance=_invariant(batch_sizes) if batch_sizes else None,
    )
    self_test_path = folder / SELF_TEST
    self_test_path.write_bytes(_self_test(model_path, off_by=0 if passes_self_test else 1))
    source = Source(checkpoint_sha256="0" * 64, arch="tiny", setting="2", epoch=1)
    files = {SELF_TEST: file_sha256(self_test_path)}
    manifest = new_manifest(source, preprocess.to_json(), CLASSES, [artifact], files)
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return folder


def judged(backend: str, verdict: str = "passed", images_per_s: float = 1.0) -> Evidence:
    return Evidence(
        backend=backend,
        instruction_set="test",
        threads=1,
        parity=passed_parity(verdict),
        invariance=None,
        images_per_s=images_per_s,
    )


def with_artifact(
    bundle: Bundle, file: str, *evidence: Evidence, content: bytes = b"a model", **fields: object
) -> Bundle:
    """Add a model file to a bundle."""
    (bundle.path / file).write_bytes(content)
    artifact: Artifact = msgspec.structs.replace(
        bundle.artifacts[0],
        file=file,
        sha256=file_sha256(bundle.path / file),
        parity=evidence[0].parity,
        evidence=list(evidence),
        **fields,
    )
    manifest = bundle.manifest.with_artifacts([*bundle.artifacts, artifact])
    return bundle.with_manifest(manifest)


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change bundle.json's content."""
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    change(manifest)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def refused(bundle: Path) -> str:
    """The one line with which opening it fails; it names the bundle."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    line = str(caught.value)
    assert str(bundle) in line
    assert "\n" not in line
    return line


def _self_test(model_path: Path, off_by: int) -> bytes:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3), np.uint8)
    images = images.repeat(SIDE // 3, 1).repeat(SIDE // 3, 2)
    with OnnxRunner(model_path, num_threads=1) as runner:
        logits = runner.run(images)
    top2 = np.sort(logits, axis=1)[:, -2:]
    top1 = (logits.argmax(axis=1) + off_by) % len(CLASSES)
    return SelfTest(images, top1, top2[:, 1] - top2[:, 0]).to_bytes()


def passed_parity(verdict: str = "passed") -> Parity:
    """Evidence of a gate that saw identical decisions."""
    same = ErrorChange(
        reference_error=5.0,
        error=5.0,
        lost=0,
        gained=0,
        upper_loss_points=0.0,
        tolerance_points=0.1,
    )
    return Parity(
        verdict=verdict,
        basis="identical",
        n=1000,
        data_sha256="0" * 64,
        confidence=0.95,
        agreement=100.0,
        max_abs_logit_diff=0.0,
        ran_on="onnxruntime-cpu",
        top1=same,
        top5=same,
    )


def _invariant(batch_sizes: list[int]) -> Invariance:
    return Invariance(
        batch_sizes=batch_sizes,
        num_images=1,
        num_answers=len(batch_sizes),
        changed=0,
        first_changed_batch=None,
        max_probability_diff=0.0,
        ran_on="test",
    )


def tiny_model(seed: int = 0, mask: float = 0.0, *, is_fragile: bool = False) -> onnx.ModelProto:
    """uint8 `images` (N, 75, 75, 3) -> float32 `logits` (N, 10)."""
    weight = np.random.default_rng(seed).normal(size=(27, len(CLASSES))).astype(np.float32)
    constants = {
        "shape": np.array([0, 3, SIDE // 3, 3, SIDE // 3, 3]),  # 0 keeps N
        "axes": np.array([2, 4]),
        "flat": np.array([0, 27]),
        "scale": np.float32(20 / 255),
        "weight": weight,
        "bias": np.float32([0] * (len(CLASSES) - 1) + [mask]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["regions"]),
        helper.make_node("ReduceMean", ["regions", "axes"], ["means"], keepdims=0),
        helper.make_node("Reshape", ["means", "flat"], ["features"]),
        helper.make_node("Mul", ["features", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "weight", "bias"], ["logits"]),
    ]
    if is_fragile:  # 0 * (1 / 0) is not a number
        constants |= {"zero": np.float32(0), "of_each": np.array([1])}
        nodes[-1].output[0] = "sums"
        nodes += [
            helper.make_node("ReduceMax", ["features", "of_each"], ["brightest"]),
            helper.make_node("Reciprocal", ["brightest"], ["inverse"]),
            helper.make_node("Mul", ["inverse", "zero"], ["nothing"]),
            helper.make_node("Add", ["sums", "nothing"], ["logits"]),
        ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(CLASSES)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
