"""What can't be stored in 8 bits is refused, and what can keeps its bias."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny_bundle import tiny_model

from irv2.convert.onnx.calibrate import observed
from irv2.convert.onnx.int8 import quantize
from irv2.errors import EngineError


@pytest.mark.parametrize("target", ["cpu", "trt"])
def test_activations_that_are_not_finite_are_named_not_quantised(target):
    with pytest.raises(EngineError, match="int8: features reaches"):
        quantize(tiny_model(), {"features": (0.0, math.inf)}, target)


SIDE = 8


def two_layers(zero: float) -> onnx.ModelProto:
    """Pixels, normalised -> 4 filters -> 3 logits; the first of each has only a bias."""
    rng = np.random.default_rng(0)
    weights = {
        "first": rng.normal(0, 0.3, (4, 3, 3, 3)),
        "second": rng.normal(0, 0.5, (3, 4)),
    }
    for weight in weights.values():
        weight[0] = zero
    constants = {
        **{name: weight.astype(np.float32) for name, weight in weights.items()},
        "first_bias": np.float32([0.31, -0.2, 0.47, 0.1]),
        "second_bias": np.float32([0.37, -0.23, 0.11]),
        "mean": np.full((1, 3, 1, 1), 120, np.float32),
        "scale": np.full((1, 3, 1, 1), 1 / 60, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["pixels"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["normal"]),
        helper.make_node("Conv", ["normal", "first", "first_bias"], ["features"], "conv"),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "second", "second_bias"], ["logits"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "two_layers",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("zero", [0, 1e-40])
@pytest.mark.parametrize("in_float32", [[], ["conv"]])
def test_a_filter_of_zeros_keeps_its_bias(zero, in_float32):
    """Its scale was 1, so that 0.31 and 0.37 were rounded to a whole level of the input: to 0."""
    model = two_layers(zero)
    images = np.random.default_rng(1).integers(0, 256, (16, SIDE, SIDE, 3), np.uint8)
    evaluator = ReferenceEvaluator(model)
    values = evaluator.run(None, {"images": images}, intermediate=True)
    names = observed(model.graph)
    ranges = {name: (float(values[name].min()), float(values[name].max())) for name in names}
    session = onnxruntime.InferenceSession(
        quantize(model, ranges, "cpu", in_float32).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    [logits] = session.run(["logits"], {"images": images})
    level = (values["logits"].max() - values["logits"].min()) / 255
    np.testing.assert_allclose(logits[:, 0], 0.37, atol=level)
    # Of the others a few levels of rounding, of inputs and weights.
    np.testing.assert_allclose(logits, values["logits"], atol=6 * level)
