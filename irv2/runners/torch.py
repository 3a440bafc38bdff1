"""The reference: a checkpoint in torch, float32."""

import torch

from irv2.checkpoint import Checkpoint
from irv2.errors import EngineError
from irv2.model.paper import Normalized
from irv2.runners.base import Runner
from irv2.types import FloatArray, UInt8Array

MAX_BATCH = 64


class TorchRunner(Runner):
    """Runs a checkpoint's network in eval mode."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        """Build the network on `device`, cpu or cuda."""
        self._device = torch.device(device)
        self.network = normalized_network(checkpoint, device)
        self.backend = f"torch-{device}"
        self.image_size = checkpoint.preprocess.crop
        self.num_classes = checkpoint.model.num_classes
        self.max_batch = MAX_BATCH

    @torch.inference_mode()
    def run(self, images: UInt8Array) -> FloatArray:
        """Map uint8 RGB (N, S, S, 3) to float32 logits (N, num_classes)."""
        logits: FloatArray = self.network(torch.from_numpy(images).to(self._device)).cpu().numpy()
        return logits


def normalized_network(checkpoint: Checkpoint, device: str) -> Normalized:
    """Build the checkpoint's network with its normalisation, in eval mode, in full float32."""
    use_full_float32()
    config = checkpoint.preprocess
    return Normalized(checkpoint.build_model(), config.mean, config.std).eval().to(device)


def use_full_float32() -> None:
    """Turn off TF32 on GPUs, which keeps only 10 bits of each factor; the reference is float32."""
    torch.backends.cudnn.allow_tf32 = False


def resolve_device(device: str) -> str:
    """Resolve --device to cpu or cuda; raises EngineError if cuda is asked for and missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("--device cuda", "torch finds no GPU", "a GPU", "use --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
