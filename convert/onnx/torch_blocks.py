"""The checkpoint's side of `irv2.convert.onnx.blocks`: every block's output, from torch."""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from irv2.checkpoint import Checkpoint
from irv2.convert.onnx.blocks import BlockOutputs
from irv2.model.paper import Normalized
from irv2.types import UInt8Array


@torch.inference_mode()
def torch_block_outputs(checkpoint: Checkpoint, images: UInt8Array) -> BlockOutputs:
    """By block, in the order of the network, for uint8 (N, S, S, 3).

    A block's output is what the next block with weights reads: a pool or dropout in between belongs
    to the block before it, as in an ONNX graph.
    """
    model, config = checkpoint.build_model(), checkpoint.preprocess
    outputs: BlockOutputs = {}

    def note(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        outputs[name] = inputs[0].numpy().copy()  # the block may work in place

    weighted = [(name, block) for name, block in model.named_blocks() if [*block.parameters()]]
    for (name, _), (_, after) in pairwise(weighted):
        after.register_forward_pre_hook(partial(note, name))
    logits = Normalized(model, config.mean, config.std)(torch.from_numpy(images))
    return outputs | {weighted[-1][0]: logits.numpy()}
