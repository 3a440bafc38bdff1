"""The output of every block of an ONNX model.

Weights keep their names through export and quantisation, so the blocks of two graphs can be told
apart and paired whatever was folded or inserted. A block's output is what the first weighted
layer of a later block reads.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irv2.block_names import block_of
from irv2.errors import EngineError
from irv2.runners.onnx import import_onnxruntime
from irv2.system.machine import num_cores
from irv2.system.stop import raise_if_stopped
from irv2.types import FloatArray, UInt8Array

if TYPE_CHECKING:
    import onnx

BlockOutputs = dict[str, FloatArray]  # in the order of the network; the last is "classifier"


def block_outputs(onnx_path: Path, images: UInt8Array) -> BlockOutputs:
    """Return the output of every block for uint8 (N, S, S, 3).

    Raises EngineError if the model can't be run, or its blocks can't be told apart.
    """
    try:
        import onnx
    except ImportError as error:  # `irv2 verify` needs it for nothing else
        raise_if_stopped()
        raise EngineError("onnx", "onnx is not installed") from error
    model = onnx.load(onnx_path)
    tensors = _boundaries(model.graph)
    declared = {output.name for output in model.graph.output}
    for tensor in tensors.values():
        if tensor not in declared:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    try:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_cores()
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(list(tensors.values()), {"images": images})
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise_if_stopped()
        raise EngineError(onnx_path, f"ONNX Runtime can't run it ({error})") from error
    return {block: value.astype(np.float32) for block, value in zip(tensors, values, strict=True)}


def _boundaries(graph: "onnx.GraphProto") -> dict[str, str]:
    """Block -> the tensor that leaves it, in the order of the network.

    A later block may read several, pooled or not: the one that came first is what it was given.
    """
    block_of: dict[str, str] = {}  # tensor -> the block that computes it
    depth_of: dict[str, int] = {}  # tensor -> the most nodes on a way to it
    order: dict[str, int] = {}
    boundaries: dict[str, str] = {}
    for node in graph.node:
        sources = [block_of[name] for name in node.input if name in block_of]
        block = _own_block(node) or max(sources, key=order.__getitem__, default=None)
        if block is None:
            continue  # before the first block, or a weight's own nodes
        order.setdefault(block, len(order))
        read = node.input[0]
        before = block_of.get(read, block)
        if before != block and _own_block(node):
            known = boundaries.setdefault(before, read)
            boundaries[before] = min(known, read, key=depth_of.__getitem__)
        block_of |= dict.fromkeys(node.output, block)
        depth = 1 + max((depth_of[name] for name in node.input if name in depth_of), default=0)
        depth_of |= dict.fromkeys(node.output, depth)
    if "logits" not in block_of:
        raise EngineError("blocks", "none of its layers has a known name")
    return boundaries | {block_of["logits"]: "logits"}


def _own_block(node: "onnx.NodeProto") -> str | None:
    """The block that a layer's weights belong to; None for a node without weights."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    return next(filter(None, map(block_of, node.input[1:])), None)
