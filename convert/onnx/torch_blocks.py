"""The checkpoint's side of `irv2.convert.onnx.blocks`: every block's output, from torch."""

import torch
from torch import Tensor, nn

from irv2.checkpoint import Checkpoint
from irv2.convert.onnx.blocks import BlockOutputs
from irv2.model.paper import Normalized
from irv2.types import UInt8Array

_CHAINS = ("stem", "blocks_a", "blocks_b", "blocks_c")


@torch.inference_mode()
def torch_block_outputs(checkpoint: Checkpoint, images: UInt8Array) -> BlockOutputs:
    """By block, in the order of the network, for uint8 (N, S, S, 3).

    What has no weights (a pool, dropout) belongs to the block before it, as in an ONNX graph.
    """
    model, config = checkpoint.build_model(), checkpoint.preprocess
    outputs: BlockOutputs = {}

    def keep(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs[name] = output.numpy().copy()  # the next block may work in place

        module.register_forward_hook(hook)

    current = ""
    for name, child in model.named_children():
        blocks = child.named_children() if name in _CHAINS else [("", child)]
        for index, block in blocks:
            if next(block.parameters(), None) is not None:
                current = f"{name}.{index}".rstrip(".")
            keep(current, block)
    Normalized(model, config.mean, config.std)(torch.from_numpy(images))
    return outputs
