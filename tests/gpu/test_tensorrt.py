"""A TensorRT engine on a real GPU: built, judged, chosen, and right at every batch size."""

from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import CLASSES, make_checkpoint, write_images

from convert.engine import choose_flavour
from convert.export import ExportOptions, export
from convert.verify import verify
from irv2.bundle import Bundle
from irv2.errors import EngineError
from irv2.runners.choose import open_best
from irv2.runners.cuda import find_gpu
from irv2.runners.onnx import OnnxRunner


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        gpu = find_gpu()
        flavour = choose_flavour()
    except EngineError as error:
        pytest.skip(f"no GPU that an engine could run on ({error})")
    if flavour.gpu != gpu:
        pytest.skip(f"tensorrt is not installed; {flavour.format} builds for {flavour.target}")
    return write_images(tmp_path_factory.mktemp("gpu") / "data")


@pytest.fixture(scope="module")
def bundle(data: Path) -> Path:
    checkpoint_path = data.parent / "best.pt"
    make_checkpoint(data).save(checkpoint_path)
    options = ExportOptions(precisions=("fp32",), trt=True, max_batch=16)
    report = export(checkpoint_path, data, None, options)
    assert not report.failed, report.to_table()
    return data.parent / "best.bundle"


def test_engine_passes_the_gate_and_is_chosen(bundle):
    artifact, runner = open_best(Bundle.open(bundle))
    with runner:
        assert (artifact.file, runner.backend) == ("model.fp32.plan", "tensorrt")
        assert artifact.parity.verdict == "passed"
        assert artifact.gpu == str(find_gpu())


def test_engine_gives_the_onnx_models_logits_at_every_batch_size(bundle):
    images = np.random.default_rng(0).integers(0, 256, (16, 75, 75, 3), dtype=np.uint8)
    expected = OnnxRunner(bundle / "model.onnx").run(images)
    with open_best(Bundle.open(bundle))[1] as runner:
        for num in (16, 1, 7, 8, 16):  # also smaller after larger: no old rows shine through
            logits = runner.run(images[:num])
            assert (logits.shape, logits.dtype) == ((num, len(CLASSES)), np.float32)
            # Float32 without TF32, summed in another order.
            np.testing.assert_allclose(
                logits, expected[:num], atol=1e-4 * np.abs(expected).max(), rtol=0
            )


def test_verify_runs_the_engine_again(bundle, data):
    report = verify(bundle, data)
    assert [artifact.parity.verdict for artifact in report.manifest.artifacts] == ["passed"] * 2
