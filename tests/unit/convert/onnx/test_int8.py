"""What can't be stored in 8 bits is refused."""

import math

import pytest
from tiny_bundle import tiny_model

from irv2.convert.onnx.int8 import quantize
from irv2.errors import EngineError


@pytest.mark.parametrize("target", ["cpu", "trt"])
def test_activations_that_are_not_finite_are_named_not_quantised(target):
    with pytest.raises(EngineError, match="int8: features reaches"):
        quantize(tiny_model(), {"features": (0.0, math.inf)}, target)
