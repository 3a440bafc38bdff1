"""What is refused before a candidate is made."""

import math
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint, write_images

from irv2.convert.candidate import ExportOptions, make_candidate
from irv2.convert.onnx.calibrate import CalibrationOptions
from irv2.data.dataset import open_split
from irv2.errors import EngineError, UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("export") / "data")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_before_int8_is_made_of_them(data, tmp_path, value):
    checkpoint = make_checkpoint(data)
    checkpoint.state_dict["classifier.weight"][0, 0] = value
    images = open_split(data, "val", checkpoint.classes)
    options = ExportOptions(precisions=("int8",))
    with pytest.raises(EngineError, match=r"int8: classifier\.weight holds values that are not"):
        make_candidate(checkpoint, "0" * 64, tmp_path, options, images)
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_are_refused_where_no_int8_is_made():
    calibration = CalibrationOptions(folder=Path("images"))
    ExportOptions(calibration=calibration)
    ExportOptions(precisions=("fp16", "int8"), calibration=calibration)
    with pytest.raises(UsageError, match=r"--calibration: int8 is not made; name int8 in"):
        ExportOptions(precisions=("fp32", "fp16"), calibration=calibration)
