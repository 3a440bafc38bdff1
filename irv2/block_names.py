"""The blocks of both networks by name; needs neither torch nor onnx.

A block is a child of one of the SERIES (`stem.3`, `blocks_a.0`) or a whole part (`reduction_a`,
`classifier`). The names of its weights begin with its own: in a state_dict, and behind `model.` in
every ONNX file.
"""

import re
from typing import Literal, get_args

Stage = Literal["head", "blocks_c", "blocks_b", "all"]  # what a fine-tuning trains
STAGES: tuple[Stage, ...] = get_args(Stage)
RESIDUAL = ("blocks_a", "blocks_b", "blocks_c")  # series of identical residual blocks
SERIES = ("stem", *RESIDUAL)
SINGLE = ("reduction_a", "reduction_b", "head", "classifier")  # the head is TF-slim's alone
PARTS = SERIES + SINGLE
_BLOCK = re.compile(rf"\b((?:{'|'.join(SERIES)})\.\d+|{'|'.join(SINGLE)})\.")


def block_of(weight: str) -> str | None:
    """Return the block that a weight belongs to by its name; None if it belongs to no block."""
    found = _BLOCK.search(weight)
    return found[1] if found else None


def part_of(block: str) -> str:
    """Return the part of the network that a block belongs to: `stem` for `stem.3`."""
    return block.partition(".")[0]
