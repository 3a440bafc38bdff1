"""ONNX Runtime under our interface."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from irv2.errors import EngineError
from irv2.runners.onnx import OnnxRunner


def test_a_batch_that_fails_is_an_error_and_no_line_of_the_library(tmp_path, capfd):
    """Its log would go past the server's to stderr, coloured."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 2, 2, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 12])
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["logits"]),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 12])
    graph = helper.make_graph(nodes, "one image at a time", [images], [logits], [shape])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "m.onnx")
    runner = OnnxRunner(tmp_path / "m.onnx", num_threads=1)
    assert runner.run(np.zeros((1, 2, 2, 3), np.uint8)).shape == (1, 12)
    with pytest.raises(EngineError, match="Reshape"):
        runner.run(np.zeros((2, 2, 2, 3), np.uint8))
    assert capfd.readouterr().err == ""
