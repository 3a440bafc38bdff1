"""ONNX Runtime on CUDA and TensorRT-RTX on a real GPU."""

import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from irv2.bundle import Bundle
from irv2.convert.engine.build import RTX_CAPABILITIES, Flavour, engine_artifact
from irv2.convert.engine.options import EngineOptions
from irv2.convert.verify import verify
from irv2.errors import BundleError
from irv2.manifest import bundle_id
from irv2.runners.choose import open_best, open_runner
from irv2.runners.onnx import OnnxRunner
from irv2.system.gpu import count_gpus, find_gpu

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 75, 75, 3), dtype=np.uint8)


@pytest.fixture
def onnxruntime(require):
    return require("onnxruntime")


@pytest.fixture
def tensorrt_rtx(require):
    library, gpu = require("tensorrt_rtx"), find_gpu()
    if gpu.capability not in RTX_CAPABILITIES:
        pytest.skip(f"{gpu}; expected compute capability {', '.join(RTX_CAPABILITIES)}")
    return library


def assert_close(logits: np.ndarray, model_path) -> None:
    """Float32 without TF32, by other algorithms than on the CPU."""
    with OnnxRunner(model_path) as runner:
        expected = runner.run(IMAGES)
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


def test_onnxruntime_computes_the_whole_model_on_cuda(onnxruntime, onnx_bundle):
    # Opened with the fallback switched off, which fails where any node is left to the CPU.
    with OnnxRunner(onnx_bundle / "model.onnx", "cuda") as runner:
        assert runner.backend == "onnxruntime-cuda"
        assert_close(runner.run(IMAGES), onnx_bundle / "model.onnx")


def test_onnxruntime_on_cuda_takes_batches_of_any_size_from_their_own_memory(
    onnxruntime, onnx_bundle
):
    with OnnxRunner(onnx_bundle / "model.onnx", "cuda") as runner:
        options = runner._sessions[0].get_provider_options()["CUDAExecutionProvider"]
        assert options["cudnn_conv_algo_search"] == "HEURISTIC"
        assert (options["use_tf32"], options["device_id"]) == ("0", "0")
        memory = runner.batch_memory(len(IMAGES))
        memory[:] = IMAGES
        for size in (1, 2, 3, 16):
            np.testing.assert_array_equal(runner.run(memory[:size]), runner.run(IMAGES[:size]))
        assert_close(runner.run(memory), onnx_bundle / "model.onnx")


def test_onnxruntime_shares_a_batch_between_two_gpus(onnxruntime, onnx_bundle):
    if (found := count_gpus()) < 2:
        pytest.skip(f"{found} GPU; expected 2 or more")
    opened = Bundle.open(onnx_bundle)
    [artifact] = opened.manifest.artifacts
    with open_runner(opened.path / artifact.file, artifact, "cuda", num_gpus=2) as both:
        assert both.max_batch == 32
        assert_close(both.run(IMAGES), onnx_bundle / "model.onnx")


def test_onnxruntime_asked_for_cuda_never_computes_on_the_cpu(onnxruntime, onnx_bundle):
    program = (
        "import sys; from pathlib import Path; from irv2.runners.onnx import OnnxRunner\n"
        "OnnxRunner(Path(sys.argv[1]), 'cuda')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(onnx_bundle / "model.onnx")],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "irv2.errors.EngineError" in result.stderr


def test_evidence_from_a_cpu_is_not_enough_for_cuda_until_verify_took_its_own(
    onnxruntime, onnx_bundle, data
):
    bundle = Bundle.open(onnx_bundle)
    [artifact] = bundle.manifest.artifacts
    assert artifact.parity.ran_on == "onnxruntime-cuda"  # the export took the faster device
    parity = msgspec.structs.replace(artifact.parity, ran_on="onnxruntime-cpu")
    artifact = msgspec.structs.replace(artifact, parity=parity)
    bundle.with_manifest(msgspec.structs.replace(bundle.manifest, artifacts=[artifact]))
    with pytest.raises(BundleError, match=r"model\.onnx \(cuda\): was judged on onnxruntime-cpu"):
        open_best(onnx_bundle, Bundle.open(onnx_bundle).artifacts, backend="onnxruntime-cuda")
    verify(onnx_bundle, data)
    with open_best(onnx_bundle, Bundle.open(onnx_bundle).artifacts).runner as runner:
        assert runner.backend == "onnxruntime-cuda"


def test_an_rtx_engine_built_ahead_of_time_passes_verify_here(tensorrt_rtx, onnx_bundle, data):
    bundle = Bundle.open(onnx_bundle)
    onnx, options = bundle.manifest.artifacts[0], EngineOptions(profiles=((1, 4, 12), (13, 14, 16)))
    plan = engine_artifact(onnx, onnx_bundle, Flavour("tensorrt_rtx", None, tensorrt_rtx), options)
    bundle.with_manifest(
        msgspec.structs.replace(
            bundle.manifest,
            artifacts=[onnx, plan],
            id=bundle_id([onnx, plan], bundle.manifest.preprocess, bundle.classes),
        )
    )
    report = verify(onnx_bundle, data)
    assert not report.failed, report.to_table()
    plan = report.manifest.artifacts[1]
    assert plan.parity.ran_on == "tensorrt_rtx"
    assert {12, 13, 14} <= set(plan.invariance.batch_sizes)
    with open_best(
        onnx_bundle, Bundle.open(onnx_bundle).artifacts, backend="tensorrt_rtx"
    ).runner as runner:
        assert_close(runner.run(IMAGES), onnx_bundle / "model.onnx")
