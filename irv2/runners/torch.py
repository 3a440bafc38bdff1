"""The reference: a checkpoint in torch, float32."""

import torch
from torch import nn

from irv2.checkpoint import Checkpoint
from irv2.errors import EngineError
from irv2.model.build import Network
from irv2.model.paper import Normalized
from irv2.runners.base import Runner
from irv2.types import FloatArray, UInt8Array

MAX_BATCH = 64


class TorchRunner(Runner):
    """Runs a checkpoint's network in eval mode."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        """`device` is cpu or cuda."""
        use_full_float32()
        config = checkpoint.preprocess
        model = Normalized(checkpoint.build_model(), config.mean, config.std)
        self._device = torch.device(device)
        self._model = model.eval().to(self._device)
        self.backend = f"torch-{device}"
        self.image_size = config.crop
        self.num_classes = checkpoint.model.num_classes
        self.max_batch = MAX_BATCH

    @torch.inference_mode()
    def run(self, images: UInt8Array) -> FloatArray:
        """uint8 RGB (N, S, S, 3) -> float32 logits (N, num_classes)."""
        logits: FloatArray = self._model(torch.from_numpy(images).to(self._device)).cpu().numpy()
        return logits


class FeatureRunner(TorchRunner):
    """Answers with what the classifier would see: (N, 2048) or TF-slim's (N, 1536), or fewer."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        super().__init__(checkpoint, device)
        network = self._model.model
        assert isinstance(network, Network)
        self.num_classes = network.classifier.in_features
        network.set_submodule("classifier", nn.Identity())


def use_full_float32() -> None:
    """No TF32 on GPUs: it keeps 10 bits of each factor, and the reference is float32 everywhere."""
    torch.backends.cudnn.allow_tf32 = False


def resolve_device(device: str) -> str:
    """cpu or cuda for --device; raises EngineError where cuda is asked for and missing."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineError("--device cuda", "torch finds no GPU", "a GPU", "use --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
