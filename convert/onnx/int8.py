"""Two int8 ONNX models from one calibration, since no one graph suits both machines.

`int8-cpu`: activations uint8 with a zero point, quantised wherever x86 kernels take 8 bits: inputs
and outputs of convolutions, additions, concatenations, pools. `int8-trt`: symmetric int8, at the
inputs of convolutions and at the identity of each residual addition, so that TensorRT fuses
convolution and addition; biases float. Weights are int8 per output channel in both.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import onnx

from irv2.convert.onnx.fold_pixels import fold_pixels
from irv2.errors import EngineError

Target = Literal["cpu", "trt"]


def quantize(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    target: Target,
    kept: Collection[str] = (),
) -> onnx.ModelProto:
    """A new model with QuantizeLinear and DequantizeLinear; nodes named in `kept` stay float32.

    Raises EngineError where an activation's range is not finite.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    for name, range_ in ranges.items():
        if not np.isfinite(range_).all():
            raise EngineError("int8", f"{name} reaches {range_}", "finite activations")
    if target == "cpu":
        result, pixels = fold_pixels(model)
        ranges = {pixels: (0.0, 255.0), **ranges}
    else:
        result = onnx.ModelProto()
        result.CopyFrom(model)
    limits = {
        name: (np.float32(low), np.float32(high))
        for name, (low, high) in _with_relu_inputs(model.graph, ranges).items()
    }
    operators, options = _PLACEMENT[target]
    quantizer = QDQQuantizer(
        result,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if target == "cpu" else QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=[],
        nodes_to_exclude=list(kept),
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
