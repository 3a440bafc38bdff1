"""The block in which a failed artefact departs from the reference, and what to try."""

from collections.abc import Callable

import numpy as np

from irv2.bundle import Bundle
from irv2.convert.onnx.blocks import BlockOutputs, block_outputs
from irv2.errors import EngineError
from irv2.manifest import Artifact, Precision
from irv2.types import UInt8Array

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
    """Say in one line in which block a failed artefact first departs, on uint8 (N, S, S, 3).

    The blocks of an engine can't be read, so the ONNX model that it was built from is named.
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
        got = error.got.replace(f"{bundle.path}/", "")
        return f"{artifact.file}: its blocks can't be compared here ({got})."
    differences = compare_blocks(reference, found)
    if not differences:
        return f"{artifact.file}: its blocks can't be compared here (none fits the reference's)."
    line = f"{artifact.file} {describe(differences, artifact.precision)}"
    if skipped := [block for block in reference if block not in differences]:
        line += f" Not found in it, or of another shape: {', '.join(skipped)}."
    return line


def describe(differences: dict[str, float], precision: Precision) -> str:
    """Say what the relative differences by block mean, and what to try."""
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
    """Return the norm of the difference over that of the reference, for blocks of equal shape."""
    differences = {}
    for block, expected in reference.items():
        actual = found.get(block)
        if actual is None or actual.shape != expected.shape:
            continue
        norm = np.linalg.norm(expected.astype(np.float64))
        difference = np.linalg.norm(actual.astype(np.float64) - expected)
        differences[block] = float(difference / max(norm, np.finfo(np.float32).tiny))
    return differences
