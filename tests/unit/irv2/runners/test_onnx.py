"""ONNX Runtime under our interface."""

import os
from pathlib import Path

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


def test_its_threads_are_as_many_as_cores_may_be_used_and_bound_to_none(tmp_path, monkeypatch):
    """Left to itself it binds each thread to a core, and fails at it where a container forbids."""
    monkeypatch.setattr("irv2.runners.onnx.num_cores", lambda: 3)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 2, 2, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2, 2, 3])
    nodes = [helper.make_node("Cast", ["images"], ["logits"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(nodes, "cast", [images], [logits])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "m.onnx")
    before = set(Path("/proc/self/task").iterdir())
    with OnnxRunner(tmp_path / "m.onnx") as runner:
        threads = set(Path("/proc/self/task").iterdir()) - before
        assert runner.num_threads == 3
        assert len(threads) == 2  # who calls `run` is the third
        for thread in threads:
            assert os.sched_getaffinity(int(thread.name)) == os.sched_getaffinity(0)
