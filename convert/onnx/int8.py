"""Two int8 ONNX models from one calibration, since no one graph suits both machines.

`int8-cpu`: activations uint8 with a zero point, quantised wherever x86 kernels take 8 bits: inputs
and outputs of convolutions, additions, concatenations, pools. `int8-trt`: symmetric int8, at the
inputs of convolutions and at the identity of each residual addition, so that TensorRT fuses
convolution and addition; biases float. Weights are int8 per output channel in both.
"""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from irv2.convert.onnx.calibrate import Calibration
from irv2.convert.onnx.model_file import write_variant
from irv2.errors import EngineError
from irv2.manifest import Artifact
from irv2.runners.choose import INT8_CPU, INT8_TRT
from irv2.runners.onnx import import_onnxruntime

Target = Literal["cpu", "trt"]
_TINY = 1e-20  # far below any weight, far above what float32 can't hold
_FILES: dict[Target, str] = {"cpu": INT8_CPU, "trt": INT8_TRT}


def write_int8(
    model: onnx.ModelProto,
    fp32: Artifact,
    folder: Path,
    calibration: Calibration,
    in_float32: Mapping[str, list[str]],
) -> list[Artifact]:
    """Write `model.int8-cpu.onnx` and `model.int8-trt.onnx` to `folder`.

    `in_float32` maps each block that stays float32 to its nodes.
    """
    made_with = {
        "onnx": onnx.__version__,
        "onnxruntime": import_onnxruntime().__version__,
        **calibration.record,
        "float32_blocks": ", ".join(in_float32) or "none",
    }
    nodes = [name for names in in_float32.values() for name in names]
    return [
        write_variant(
            quantize(model, calibration.ranges, target, nodes),
            folder / file,
            "int8",
            fp32,
            made_with,
        )
        for target, file in _FILES.items()
    ]


def quantize(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    target: Target,
    in_float32: Collection[str] = (),
) -> onnx.ModelProto:
    """Insert QuantizeLinear and DequantizeLinear into a copy, but not at the nodes `in_float32`.

    Raises EngineError if the range of an activation is not finite.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    for name, range_ in ranges.items():
        if not np.isfinite(range_).all():
            raise EngineError("int8", f"{name} reaches {range_}", "finite activations")
    if target == "cpu":
        result, pixels = _fold_pixels(model)
        ranges = {pixels: (0.0, 255.0), **ranges}
    else:
        result = copy.deepcopy(model)
    limits = {
        name: (np.float32(low), np.float32(high))
        for name, (low, high) in _with_relu_inputs(model.graph, ranges).items()
    }
    operators, options = _PLACEMENT[target]
    if target == "cpu":
        options = {**options, "TensorQuantOverrides": _zero_filter_ranges(result.graph)}
    quantizer = QDQQuantizer(
        result,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if target == "cpu" else QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=[],
        nodes_to_exclude=list(in_float32),
        op_types_to_quantize=operators,
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


_PLACEMENT: dict[Target, tuple[list[str], dict[str, Any]]] = {
    "cpu": (["Conv", "Gemm", "Add", "Concat", "MaxPool", "Relu"], {"WeightSymmetric": True}),
    "trt": (
        ["Conv", "Gemm"],
        {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT takes no int32
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
        },
    ),
}


def _with_relu_inputs(
    graph: onnx.GraphProto, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """A ReLU is merged into the scale of what it reads, which therefore takes its range."""
    relus = [node for node in graph.node if node.op_type == "Relu"]
    merged = {relu.input[0]: ranges[relu.output[0]] for relu in relus}
    return {**merged, **ranges}


def _zero_filter_ranges(graph: onnx.GraphProto) -> dict[str, list[dict[str, Any]]]:
    """Weights with filters of zeros -> per filter the range to assume, as the quantizer takes it.

    A bias has the scale of input times weights. Of a filter without a range the quantizer takes
    that to be 1, which may round all of the bias away; from a tiny range it raises the scale until
    the bias just fits into its 32 bits.
    """
    arrays = {weight.name: weight for weight in graph.initializer}
    ranges: dict[str, list[dict[str, Any]]] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in arrays:
            continue
        weight = numpy_helper.to_array(arrays[node.input[1]])
        is_transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        axis = 0 if node.op_type == "Conv" or is_transposed else 1
        filters = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        is_zero = np.abs(filters).max(axis=1) < _TINY  # weight decay ends below what floats hold
        if not is_zero.any():
            continue
        low, high = np.where(is_zero, [[-_TINY], [_TINY]], [filters.min(1), filters.max(1)])
        limits = [{"rmin": a, "rmax": b} for a, b in zip(low, high, strict=True)]
        ranges[node.input[1]] = [{"axis": axis, **limits[0]}, *limits[1:]]
    return ranges


def _fold_pixels(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """A model whose first convolution reads pixels of 0..255, and the name of that input.

    The normalisation moves into the convolution's weights, which then read the image's own bytes:
    quantised exactly, with scale 1, and without two passes over the picture in float32 that took
    4 % of the time. Expects Sub, Mul and a convolution in a row, as in every export. A convolution
    that pads with zeros, which would no longer be the mean colour, is left as it is.
    """
    result = copy.deepcopy(model)
    graph = result.graph
    nodes = list(graph.node)
    start = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    subtract, multiply, convolution = nodes[start - 2 : start + 1]
    assert (subtract.op_type, multiply.op_type) == ("Sub", "Mul")
    pads = [list(entry.ints) for entry in convolution.attribute if entry.name == "pads"]
    if any(map(any, pads)):
        return result, convolution.input[0]
    weights = {weight.name: weight for weight in graph.initializer}
    weight = weights[convolution.input[1]]
    mean = numpy_helper.to_array(weights[subtract.input[1]]).astype(np.float64)  # (1, 3, 1, 1)
    scale = numpy_helper.to_array(weights[multiply.input[1]]).astype(np.float64)
    scaled = numpy_helper.to_array(weight) * scale
    shift = -(scaled * mean).sum(axis=(1, 2, 3))
    # An export leaves out a bias that is zero everywhere, as it is before any training.
    if len(convolution.input) == 3:
        old_bias = weights[convolution.input[2]]
        shift += numpy_helper.to_array(old_bias)
        graph.initializer.remove(old_bias)
    bias = numpy_helper.from_array(shift.astype(np.float32), f"{weight.name}.pixel_bias")
    graph.initializer.append(bias)
    weight.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), weight.name))
    convolution.input[:] = [subtract.input[0], weight.name, bias.name]
    for node in (subtract, multiply):
        graph.node.remove(node)
        graph.initializer.remove(weights[node.input[1]])
    return result, subtract.input[0]
