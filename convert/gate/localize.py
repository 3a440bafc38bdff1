"""Where an artefact that failed departs from the reference, block by block, and what to try.

Weights keep their names through export and quantisation, so the blocks of two graphs can be told
apart and paired whatever was folded or inserted. A block's output is what the first weighted
layer of a later block reads.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irv2.bundle import Bundle
from irv2.errors import EngineError
from irv2.manifest import Artifact, Precision
from irv2.runners.onnx import import_onnxruntime
from irv2.types import FloatArray, UInt8Array

if TYPE_CHECKING:
    import onnx

BlockOutputs = dict[str, FloatArray]  # in the order of the network; the last is "classifier"

# In a weight's name: stem.3, blocks_a.0, reduction_a, classifier.
BLOCK = re.compile(r"model\.((?:stem|blocks_[abc])\.\d+|\w+)\.")
# Relative differences of a block's output that rounding alone explains, with room: float32 sums
# in another order stay below 1e-5, fp16 around 1e-3, bf16 8 times that, int8 at 2 to 3 %.
_ROUNDING: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1e-1}
_TO_TRY: dict[Precision, str] = {
    "fp32": "export again from the checkpoint; if it stays, compare the versions of torch and onnx",
    "fp16": "bf16, whose range is float32's, or that block in float32",
    "bf16": "fp16, whose steps are finer, or that block in float32",
    "int8": "more or other calibration images, or that block in float",
}


def explain(
    bundle: Bundle,
    artifact: Artifact,
    images: UInt8Array,
    reference_blocks: Callable[[UInt8Array], BlockOutputs],
) -> str:
    """One line on the first block where a failed artefact departs, from uint8 (N, S, S, 3).

    An engine's inside can't be read: then the ONNX model that it was built from is named.
    """
    if artifact.format != "onnx":
        parents = [a.file for a in bundle.manifest.artifacts if a.sha256 == artifact.built_from]
        return (
            f"{artifact.file}: blocks of an engine can't be compared; where "
            f"{' or '.join(parents) or 'its ONNX model'} passes, the engine's builder is at fault."
        )
    try:
        found = block_outputs(bundle.path / artifact.file, images)
        reference = reference_blocks(images)
    except EngineError as error:
        return f"{artifact.file}: its blocks can't be compared here ({error.got})."
    differences = compare_blocks(reference, found)
    if not differences:
        return f"{artifact.file}: its blocks can't be compared here (none fits the reference's)."
    line = f"{artifact.file} {describe(differences, artifact.precision)}"
    if skipped := [block for block in reference if block not in differences]:
        line += f" Not found in it, or of another shape: {', '.join(skipped)}."
    return line


def describe(differences: dict[str, float], precision: Precision) -> str:
    """What the relative differences by block say, and what to try."""
    before = 0.0
    for block, difference in differences.items():
        if not difference <= _ROUNDING[precision]:  # NaN too
            return (
                f"departs from the reference in {block}: relative difference {difference:.2g} "
                f"after it, {before:.2g} before. To try: {_TO_TRY[precision]}."
            )
        before = difference
    return (
        f"departs nowhere more than {precision} rounding explains (relative difference of the "
        f"logits {before:.2g}): if single images fail, see its ledger with `irv2 diff`; if batches "
        "do, the engine is at fault."
    )


def compare_blocks(reference: BlockOutputs, found: BlockOutputs) -> dict[str, float]:
    """By block that has one shape in both: norm of the difference over norm of the reference."""
    differences = {}
    for block, expected in reference.items():
        actual = found.get(block)
        if actual is None or actual.shape != expected.shape:
            continue
        norm = np.linalg.norm(expected.astype(np.float64))
        difference = np.linalg.norm(actual.astype(np.float64) - expected)
        differences[block] = float(difference / max(norm, np.finfo(np.float32).tiny))
    return differences


def block_outputs(onnx_path: Path, images: UInt8Array) -> BlockOutputs:
    """Every block's output for uint8 (N, S, S, 3).

    Raises EngineError where it can't be run, or its blocks can't be told apart.
    """
    try:
        import onnx
    except ImportError as error:  # `irv2 verify` needs it for nothing else
        raise EngineError("onnx", "onnx is not installed") from error
    model = onnx.load(onnx_path)
    tensors = _boundaries(model.graph)
    declared = {output.name for output in model.graph.output}
    for tensor in tensors.values():
        if tensor not in declared:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    try:
        session = import_onnxruntime().InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        values = session.run(list(tensors.values()), {"images": images})
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
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
        raise EngineError("blocks", "no layer of it bears a known name")
    return boundaries | {block_of["logits"]: "logits"}


def _own_block(node: "onnx.NodeProto") -> str | None:
    """The block that a layer's weights belong to; None for a node without weights."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    return next((match[1] for name in node.input[1:] if (match := BLOCK.search(name))), None)
