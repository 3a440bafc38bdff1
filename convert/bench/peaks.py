"""What the processor can do at most in each precision: nothing but large convolutions.

3x3 over 256 channels of 35x35, as this network's heaviest, by every library that has the precision.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from irv2.bench.rounds import rate
from irv2.errors import EngineError
from irv2.manifest import Precision
from irv2.runners import openvino
from irv2.runners.backends import default_streams
from irv2.runners.onnx import import_onnxruntime
from irv2.system.machine import cpu_has_bfloat16
from irv2.types import FloatArray

CHANNELS, SIDE, NUM_CONVOLUTIONS = 256, 35, 4
_SCALE = 0.05  # of activations and weights in int8; any will do

Work = Callable[[], object]


def peak_cases(
    batch_size: int, threads: int, flop_per_image: float, seconds: float
) -> dict[str, tuple[Precision, Callable[[], float]]]:
    """By name: the precision, and a measurement in images of the network per second.

    A call counts as many images as have its operations.
    """
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, CHANNELS, SIDE, SIDE)).astype(np.float32)
    weight = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / (3 * CHANNELS**0.5)
    flop: float = NUM_CONVOLUTIONS * 2 * weight.size * SIDE * SIDE * batch_size
    images_per_call = flop / flop_per_image
    float32, int8 = _model(weight, images.shape), _quantized(weight, images.shape)
    works: dict[str, tuple[Precision, list[Work]]] = {
        "onnxruntime fp32": ("fp32", [_onnxruntime(float32, images, threads)]),
        "onnxruntime int8": ("int8", [_onnxruntime(int8, images, threads)]),
        "torch fp32": ("fp32", [partial(_torch, weight, images, torch.float32)]),
    }
    if cpu_has_bfloat16():
        works["torch bf16"] = ("bf16", [partial(_torch, weight, images, torch.bfloat16)])
    if openvino.is_installed():
        works["openvino fp32"] = ("fp32", _openvino(float32, images, "f32", threads))
        works["openvino int8"] = ("int8", _openvino(int8, images, "f32", threads))
        if cpu_has_bfloat16():
            works["openvino bf16"] = ("bf16", _openvino(float32, images, "bf16", threads))
    return {
        f"{name} convolutions": (precision, partial(_rate, streams, images_per_call, seconds))
        for name, (precision, streams) in works.items()
    }


def _rate(streams: list[Work], images_per_call: float, seconds: float) -> float:
    def calls_per_s(work: Work) -> float:
        return rate(lambda: 1 if work() is not None else 0, seconds)

    with ThreadPoolExecutor(len(streams)) as pool:
        return sum(pool.map(calls_per_s, streams)) * images_per_call


def _onnxruntime(model: onnx.ModelProto, images: FloatArray, threads: int) -> Work:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"images": images})


def _openvino(model: onnx.ModelProto, images: FloatArray, hint: str, threads: int) -> list[Work]:
    num_streams = default_streams(openvino.BACKEND, threads)
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": num_streams,
    }
    core = openvino.the_core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    if compiled.get_property("INFERENCE_PRECISION_HINT").to_string() != hint:
        raise EngineError("OpenVINO", f"does not compute in {hint} here")
    requests = [compiled.create_infer_request() for _ in range(num_streams)]
    requests[0].infer({0: images})  # the first one alone: irv2/runners/openvino.py
    return [lambda request=each: request.infer({0: images}) for each in requests]  # type: ignore[misc]


@torch.inference_mode()
def _torch(weight: FloatArray, images: FloatArray, dtype: torch.dtype) -> torch.Tensor:
    y, w = torch.from_numpy(images).to(dtype), torch.from_numpy(weight).to(dtype)
    for _ in range(NUM_CONVOLUTIONS):
        y = F.conv2d(y, w, padding=1)
    return y


def _model(weight: FloatArray, shape: tuple[int, ...]) -> onnx.ModelProto:
    names = ["images", *(f"layer{i}" for i in range(NUM_CONVOLUTIONS))]
    nodes = [
        helper.make_node("Conv", [before, "weight"], [after], pads=[1, 1, 1, 1])
        for before, after in pairwise(names)
    ]
    return _finished(nodes, names[-1], shape, [numpy_helper.from_array(weight, "weight")])


def _quantized(weight: FloatArray, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Between the convolutions, activations are uint8."""
    constants = [
        numpy_helper.from_array((weight / _SCALE).round().astype(np.int8), "weight"),
        numpy_helper.from_array(np.array(_SCALE, np.float32), "scale"),
        numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        numpy_helper.from_array(np.array(0, np.int8), "weight_zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "weight_zero"], ["weight.float"])
    ]

    def quantize(name: str) -> str:
        number, restored = f"{name}.uint8", f"{name}.float"
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [number]))
        nodes.append(helper.make_node("DequantizeLinear", [number, "scale", "zero"], [restored]))
        return restored

    before = quantize("images")
    for i in range(NUM_CONVOLUTIONS):
        inputs = [before, "weight.float"]
        nodes.append(helper.make_node("Conv", inputs, [f"layer{i}"], pads=[1, 1, 1, 1]))
        before = quantize(f"layer{i}")
    return _finished(nodes, before, shape, constants)


def _finished(
    nodes: list[Any], output: str, shape: tuple[int, ...], constants: list[Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
