"""The blocks of both networks by name; needs neither torch nor onnx.

A block is a child of one of the SERIES (`stem.3`, `blocks_a.0`) or a part of its own
(`reduction_a`, `classifier`). Its weights bear that name in a state_dict and, behind `model.`, in
every ONNX file.
"""

import re

RESIDUAL = ("blocks_a", "blocks_b", "blocks_c")  # series of equal residual blocks
SERIES = ("stem", *RESIDUAL)
SINGLE = ("reduction_a", "reduction_b", "head", "classifier")  # the head is TF-slim's alone
PARTS = SERIES + SINGLE
_BLOCK = re.compile(rf"\b((?:{'|'.join(SERIES)})\.\d+|{'|'.join(SINGLE)})\.")


def block_of(weight: str) -> str | None:
    """The block whose weight this name is; None for another name."""
    found = _BLOCK.search(weight)
    return found[1] if found else None


def part_of(block: str) -> str:
    """The part of the network that a block belongs to: `stem` for `stem.3`."""
    return block.partition(".")[0]
