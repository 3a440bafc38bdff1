"""A float32 ONNX model in fp16 or bf16: weights converted, one cast in, one cast out.

The normalisation before the first convolution and the logits stay float32. Batch norm was folded
in float64 before, so that every weight is rounded once.
"""

import copy
import logging
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from irv2.convert.onnx.blocks import block_outputs
from irv2.convert.onnx.model_file import write_variant
from irv2.errors import EngineError
from irv2.manifest import Artifact
from irv2.types import UInt8Array

logger = logging.getLogger(__name__)

Half = Literal["fp16", "bf16"]
BF16_OPSET = 22  # the first in which a convolution may be bf16
FP16_ROOM = 2e4  # fp16 ends at 65504, and other images go further than the few that are tried
_TYPES = {
    "fp16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bf16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}


def write_half(fp32: Artifact, folder: Path, precision: Half) -> Artifact:
    """Write `model.fp16.onnx` or `model.bf16.onnx` beside the float32 model in `folder`."""
    model = to_half(onnx.load(folder / fp32.file), precision)
    made_with = {"onnx": onnx.__version__}
    return write_variant(model, folder / f"model.{precision}.onnx", precision, fp32, made_with)


def to_half(model: onnx.ModelProto, precision: Half) -> onnx.ModelProto:
    """Return a converted copy. Raises EngineError if a weight is too large for `precision`."""
    half, dtype = _TYPES[precision]
    result = copy.deepcopy(model)
    graph = result.graph
    del graph.value_info[:]  # their types would be wrong now
    nodes = list(graph.node)
    start = next(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    [images], [logits] = nodes[start].input[:1], [output.name for output in graph.output]
    renamed = {images: f"{images}.{precision}", logits: f"{logits}.{precision}"}
    for node in nodes[start:]:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    into = helper.make_node("Cast", [images], [renamed[images]], to=half)
    out_of = helper.make_node("Cast", [renamed[logits]], [logits], to=TensorProto.FLOAT)
    read = {name for node in nodes[start:] for name in node.input}
    for weight in graph.initializer:
        if weight.name in read and weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(_convert(weight, dtype))
    del graph.node[:]
    graph.node.extend([*nodes[:start], into, *nodes[start:], out_of])
    if precision == "bf16":
        result.opset_import[0].version = max(BF16_OPSET, result.opset_import[0].version)
    return result


def require_fp16_range(model_path: Path, images: UInt8Array) -> None:
    """Run the float32 model on uint8 (N, S, S, 3), and log the largest output of a block.

    Raises EngineError if fp16 has too little room above it.
    """
    outputs = block_outputs(model_path, images)
    largest = {block: float(np.abs(values).max()) for block, values in outputs.items()}
    block = max(largest, key=largest.__getitem__)
    logger.info("fp16: largest activation %.3g, after %s", largest[block], block)
    if largest[block] > FP16_ROOM:
        raise EngineError(
            "fp16",
            f"activations reach {largest[block]:.3g} after {block}",
            f"at most {FP16_ROOM:g}, since fp16 ends at 65504",
            "pass --precision without fp16",
        )


def _convert(weight: onnx.TensorProto, dtype: np.dtype[np.generic]) -> onnx.TensorProto:
    values = numpy_helper.to_array(weight)
    with np.errstate(over="ignore"):  # refused below
        converted = values.astype(dtype)
    if not np.isfinite(converted.astype(np.float32)).all():
        largest = float(np.abs(values).max())
        raise EngineError(weight.name, f"{largest:.3g} is beyond the range of {dtype}", "bf16")
    return numpy_helper.from_array(converted, weight.name)
