"""What an export refuses or keeps right before and after its slow steps, which are not run here."""

import math
from pathlib import Path

import pytest
from tiny_bundle import passed_parity, tiny_model
from tiny_checkpoint import make_checkpoint, write_images

from irv2.convert.candidate import ExportOptions, make_candidate
from irv2.convert.gate.judge import undecided
from irv2.convert.gate.verdict import Judgement
from irv2.convert.onnx.calibrate import CalibrationOptions
from irv2.convert.onnx.int8 import quantize
from irv2.data.dataset import open_split
from irv2.errors import EngineError, UsageError
from irv2.manifest import Artifact


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("export") / "data")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_before_int8_is_made_of_them(data, tmp_path, value):
    checkpoint = make_checkpoint(data)
    checkpoint.state_dict["classifier.weight"][0, 0] = value
    images = open_split(data, "val", checkpoint.classes)
    options = ExportOptions()
    with pytest.raises(EngineError, match=r"int8: classifier\.weight holds values that are not"):
        make_candidate(checkpoint, "0" * 64, tmp_path, options, images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["cpu", "trt"])
def test_activations_that_are_not_finite_are_named_not_quantised(target):
    with pytest.raises(EngineError, match="int8: features reaches"):
        quantize(tiny_model(), {"features": (0.0, math.inf)}, target)


def test_calibration_images_are_refused_where_no_int8_is_made():
    calibration = CalibrationOptions(folder=Path("images"))
    ExportOptions(calibration=calibration)
    ExportOptions(precisions=("fp16", "int8"), calibration=calibration)
    with pytest.raises(UsageError, match=r"--calibration: int8 is not made; name int8 in"):
        ExportOptions(precisions=("fp32", "fp16"), calibration=calibration)


def test_an_engine_that_is_left_out_with_its_model_says_which():
    fp32, int8, plan, other = (
        Artifact(
            file=file,
            sha256=file,
            format="onnx",
            precision=precision,
            max_batch=1,
            built_from=built_from,
            built_with={},
            gpu=None,
            parity=None,
        )
        for file, precision, built_from in [
            ("model.onnx", "fp32", "checkpoint"),
            ("model.int8-trt.onnx", "int8", "model.onnx"),
            ("model.int8.plan", "int8", "model.int8-trt.onnx"),
            ("model.plan", "fp32", "model.onnx"),
        ]
    )
    judged = {
        fp32.file: Judgement(passed_parity(), "fp32 passed"),
        int8.file: Judgement(passed_parity("too_few_images"), "int8: too few images"),
    }
    assert undecided([fp32, int8, plan, other], judged) == {
        int8.file: "int8: too few images",
        plan.file: "it is made of model.int8-trt.onnx",
    }
