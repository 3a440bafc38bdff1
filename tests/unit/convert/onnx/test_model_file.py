"""Which IR version and opset an exported file asks of a runtime: no more than its nodes need."""

from pathlib import Path

import onnx
import pytest
from tiny_checkpoint import CLASSES, PREPROCESS

from irv2.checkpoint import Checkpoint
from irv2.convert.onnx.calibrate import observed
from irv2.convert.onnx.float32 import write_onnx
from irv2.convert.onnx.half import write_half
from irv2.convert.onnx.int8 import quantize
from irv2.convert.onnx.model_file import write_variant
from irv2.convert.provenance import new_artifact
from irv2.manifest import ONNX_FILE
from irv2.model.build import build
from irv2.network_config import ModelConfig, NetworkConfig, SlimConfig
from irv2.runners.choose import INT8_CPU, INT8_TRT

OPSETS = {
    ONNX_FILE: 18,
    "model.fp16.onnx": 18,
    "model.bf16.onnx": 22,
    INT8_CPU: 18,
    INT8_TRT: 18,
}


@pytest.fixture(scope="module", params=[ModelConfig, SlimConfig], ids=lambda config: config.arch)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every precision, of an untrained network with pretended ranges."""
    config: NetworkConfig = request.param(num_classes=len(CLASSES), blocks=(1, 1, 1), width=0.03)
    checkpoint = Checkpoint(
        model=config,
        state_dict=build(config).state_dict(),
        classes=CLASSES,
        setting="2",
        epoch=1,
        preprocess=PREPROCESS,
        step=1,
    )
    folder = tmp_path_factory.mktemp("models")
    write_onnx(checkpoint, "0" * 64, folder / ONNX_FILE)
    fp32 = new_artifact(folder / ONNX_FILE, "fp32", 4, "0" * 64, {})
    write_half(fp32, folder, "fp16")
    write_half(fp32, folder, "bf16")
    model = onnx.load(folder / ONNX_FILE)
    ranges = dict.fromkeys(observed(model.graph), (-1.0, 1.0))
    for file, target in ((INT8_CPU, "cpu"), (INT8_TRT, "trt")):
        write_variant(quantize(model, ranges, target), folder / file, "int8", fp32, {})
    return folder


@pytest.mark.parametrize("file", OPSETS)
def test_a_file_names_the_lowest_ir_version_and_opset_that_its_nodes_allow(folder, file):
    model = onnx.load(folder / file)
    assert model.ir_version == 8
    [opset] = model.opset_import
    assert (opset.domain, opset.version) == ("", OPSETS[file])
    opset.version -= 1
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(model, full_check=True)
