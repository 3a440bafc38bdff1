"""ONNX Runtime under our interface."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from irv2.errors import EngineError
from irv2.runners.backends import default_streams
from irv2.runners.onnx import OnnxRunner, import_onnxruntime
from irv2.system.machine import num_cores


def model_of_one_image(folder: Path) -> Path:
    """A model whose logits are the pixels of one image of 2x2; it fails on a batch of more."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 2, 2, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 12])
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "shape"], ["logits"]),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 12])
    graph = helper.make_graph(nodes, "one image at a time", [images], [logits], [shape])
    opset = helper.make_opsetid("", 17)
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def test_a_batch_that_fails_is_an_error_and_no_line_of_the_library(tmp_path, capfd):
    """Its log would go past the server's to stderr, coloured."""
    runner = OnnxRunner(model_of_one_image(tmp_path), num_threads=1)
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


@pytest.mark.parametrize(
    ("num_threads", "num_streams", "expected"),
    [(1, 1, 1), (4, 1, 4), (4, 2, 2), (7, 2, 3), (1, 2, 1), (0, 1, num_cores())],
)
def test_streams_share_the_threads(tmp_path, num_threads, num_streams, expected):
    path = model_of_one_image(tmp_path)
    with OnnxRunner(path, "cpu", num_threads, num_streams=num_streams) as runner:
        assert runner.num_streams == num_streams == len(runner._sessions)
        for session in runner._sessions:
            assert session.get_session_options().intra_op_num_threads == expected


def test_streams_answer_calls_at_once_each_its_own_and_a_failure_frees_its_stream(tmp_path):
    runner = OnnxRunner(model_of_one_image(tmp_path), num_threads=1, num_streams=3)

    def ask(number):
        return runner.run(np.full((1, 2, 2, 3), number, np.uint8))[0, 0]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(100))) == list(range(100))
    for _ in range(4):
        with pytest.raises(EngineError):
            runner.run(np.zeros((2, 2, 2, 3), np.uint8))
    assert ask(7) == 7


def test_the_stream_that_has_rested_longest_is_next_so_that_as_many_calls_reach_all(tmp_path):
    runner = OnnxRunner(model_of_one_image(tmp_path), num_threads=1, num_streams=3)
    runner.run(np.zeros((1, 2, 2, 3), np.uint8))
    first, *others = runner._sessions
    assert [runner._idle.get() for _ in range(3)] == [*others, first]


def test_a_machine_of_a_few_cores_has_one_stream():
    expected = {1: 1, 2: 1, 4: 1, 7: 1, 8: 2, 16: 4, 64: 16}
    assert {n: default_streams("onnxruntime-cpu", n) for n in expected} == expected
    assert [default_streams("openvino-cpu", n) for n in (1, 2, 16)] == [1, 2, 16]


def test_a_library_that_can_not_be_imported_is_one_line_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if a library of it were damaged
    with pytest.raises(EngineError, match=r"can't be imported .*; pip install --force-reinstall"):
        import_onnxruntime()
