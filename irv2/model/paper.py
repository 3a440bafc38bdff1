"""Inception-ResNet-v2 as the original built it: the paper's figures, 31.6 million parameters.

Source: arXiv:1602.07261, Fig. 3 and 16-19, as realised in lim0606's Torch7 model file. This is not
the TF-slim network of the same name (55.8 million parameters, blocks 10/20/10; slim.py, which
shares the layers here). Two typos in the paper are corrected as the original's author did:
Fig. 17's 1154 channels are 1152, Fig. 18's 288 / 288 / 320 are 256 / 256 / 256.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irv2.block_names import PARTS, SERIES
from irv2.network_config import ModelConfig, NetworkConfig


class ConvBN(nn.Sequential):
    """Convolution without bias, batch norm and, unless linear, ReLU.

    `kernel` is a side or (height, width). No padding unless `same`. `eps` and `momentum` are for
    batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        same: bool = False,
        linear: bool = False,
        eps: float = 1e-5,
        momentum: float = ModelConfig.bn_momentum,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else 0
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=False),
            nn.BatchNorm2d(out_channels, eps, momentum),
        ]
        super().__init__(*layers, *([] if linear else [nn.ReLU(inplace=True)]))


class Concat(nn.Module):
    """Branches of one input, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, sum of the branches' channels, H', W')."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Stem(nn.Sequential):
    """Inception-v4's stem (Fig. 3): (N, 3, 299, 299) -> (N, 384, 35, 35).

    The 1x7 comes before the 7x1, as in the original.
    """

    def __init__(self, config: ModelConfig) -> None:
        c32, c64, c96, c192 = (config.channels(n) for n in (32, 64, 96, 192))
        super().__init__(
            ConvBN(3, c32, 3, stride=2),
            ConvBN(c32, c32, 3),
            ConvBN(c32, c64, 3, same=True),
            Concat(nn.MaxPool2d(3, stride=2), ConvBN(c64, c96, 3, stride=2)),
            Concat(
                nn.Sequential(ConvBN(c64 + c96, c64, 1), ConvBN(c64, c96, 3)),
                nn.Sequential(
                    ConvBN(c64 + c96, c64, 1),
                    ConvBN(c64, c64, (1, 7), same=True),
                    ConvBN(c64, c64, (7, 1), same=True),
                    ConvBN(c64, c96, 3),
                ),
            ),
            Concat(ConvBN(2 * c96, c192, 3, stride=2), nn.MaxPool2d(3, stride=2)),
        )
        self.out_channels = 2 * c96 + c192


class Residual(nn.Module):
    """x + residual_scale * project(branches(x)), then ReLU unless linear (section 3.3).

    `project` is a sequence that starts with the 1x1 convolution back to x's channels, without
    ReLU: its output is scaled before it joins the identity.
    """

    def __init__(
        self,
        branches: list[nn.Module],
        project: nn.Sequential,
        residual_scale: float,
        *,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.branches = Concat(*branches)
        self.project = project
        self.residual_scale = residual_scale
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        total: Tensor = x + self.residual_scale * self.project(self.branches(x))
        return total if self.linear else F.relu(total)


class InceptionResNetA(Residual):
    """Residual block of the 35x35 grid (Fig. 16): branches of 32 + 32 + 64 channels."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        c32, c48, c64 = (config.channels(n) for n in (32, 48, 64))
        branches: list[nn.Module] = [
            ConvBN(channels, c32, 1),
            nn.Sequential(ConvBN(channels, c32, 1), ConvBN(c32, c32, 3, same=True)),
            nn.Sequential(
                ConvBN(channels, c32, 1),
                ConvBN(c32, c48, 3, same=True),
                ConvBN(c48, c64, 3, same=True),
            ),
        ]
        project = ConvBN(c32 + c32 + c64, channels, 1, linear=True)
        super().__init__(branches, project, config.residual_scale)


class InceptionResNetB(Residual):
    """Residual block of the 17x17 grid (Fig. 17): branches 192 + 192 channels, 7x1 before 1x7."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        c128, c160, c192 = (config.channels(n) for n in (128, 160, 192))
        branches: list[nn.Module] = [
            ConvBN(channels, c192, 1),
            nn.Sequential(
                ConvBN(channels, c128, 1),
                ConvBN(c128, c160, (7, 1), same=True),
                ConvBN(c160, c192, (1, 7), same=True),
            ),
        ]
        project = ConvBN(2 * c192, channels, 1, linear=True)
        super().__init__(branches, project, config.residual_scale)


class InceptionResNetC(Residual):
    """Residual block of the 8x8 grid (Fig. 19): branches of 192 + 256 channels, 3x1 before 1x3."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        c192, c224, c256 = (config.channels(n) for n in (192, 224, 256))
        branches: list[nn.Module] = [
            ConvBN(channels, c192, 1),
            nn.Sequential(
                ConvBN(channels, c192, 1),
                ConvBN(c192, c224, (3, 1), same=True),
                ConvBN(c224, c256, (1, 3), same=True),
            ),
        ]
        project = ConvBN(c192 + c256, channels, 1, linear=True)
        super().__init__(branches, project, config.residual_scale)


class ReductionA(Concat):
    """Reduction 35x35 -> 17x17 (Fig. 7 with k, l, m, n = 256, 256, 384, 384): adds 768 channels."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        c256, c384 = config.channels(256), config.channels(384)
        super().__init__(
            nn.MaxPool2d(3, stride=2),
            ConvBN(channels, c384, 3, stride=2),
            nn.Sequential(
                ConvBN(channels, c256, 1),
                ConvBN(c256, c256, 3, same=True),
                ConvBN(c256, c384, 3, stride=2),
            ),
        )
        self.out_channels = channels + 2 * c384


class ReductionB(Concat):
    """Reduction 17x17 -> 8x8 (Fig. 18, corrected): adds 384 + 256 + 256 channels."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        c256, c384 = config.channels(256), config.channels(384)
        super().__init__(
            nn.MaxPool2d(3, stride=2),
            nn.Sequential(ConvBN(channels, c256, 1), ConvBN(c256, c384, 3, stride=2)),
            nn.Sequential(ConvBN(channels, c256, 1), ConvBN(c256, c256, 3, stride=2)),
            nn.Sequential(
                ConvBN(channels, c256, 1),
                ConvBN(c256, c256, 3, same=True),
                ConvBN(c256, c256, 3, stride=2),
            ),
        )
        self.out_channels = channels + c384 + 2 * c256


class InceptionResNet(nn.Module, ABC):
    """The base of both networks: logits from features, and blocks by name."""

    config: NetworkConfig
    dropout: nn.Dropout
    classifier: nn.Linear

    @abstractmethod
    def features(self, images_nchw: Tensor) -> Tensor:
        """Map normalised float (N, 3, S, S) to the classifier's input, before dropout."""

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Map normalised float (N, 3, S, S) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.dropout(self.features(images_nchw)))
        return logits

    def named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield name and module of every block, in forward order (irv2/block_names.py)."""
        for part, module in self.named_children():
            if part in SERIES:
                yield from ((f"{part}.{i}", block) for i, block in module.named_children())
            elif part in PARTS:
                yield part, module


class InceptionResNetV2(InceptionResNet):
    """The whole network: normalised float (N, 3, S, S) -> logits (N, num_classes).

    S is 299 in the paper; anything from 75 works, since the pooling is global.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        num_a, num_b, num_c = config.blocks
        self.stem = Stem(config)
        channels = self.stem.out_channels
        self.blocks_a = nn.Sequential(*(InceptionResNetA(channels, config) for _ in range(num_a)))
        self.reduction_a = ReductionA(channels, config)
        channels = self.reduction_a.out_channels
        self.blocks_b = nn.Sequential(*(InceptionResNetB(channels, config) for _ in range(num_b)))
        self.reduction_b = ReductionB(channels, config)
        channels = self.reduction_b.out_channels
        self.blocks_c = nn.Sequential(*(InceptionResNetC(channels, config) for _ in range(num_c)))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels, config.num_classes)

    def features(self, images_nchw: Tensor) -> Tensor:
        """Map normalised float (N, 3, S, S) to features before dropout, (N, 2048) at full width."""
        x = self.blocks_a(self.stem(images_nchw))
        x = self.blocks_b(self.reduction_a(x))
        x = self.blocks_c(self.reduction_b(x))
        features: Tensor = x.mean((2, 3))
        return features


def inception_resnet_v2(
    num_classes: int = 1000,
    blocks: tuple[int, int, int] = (5, 10, 5),
    width: float = 1.0,
    residual_scale: float = 0.1,
    dropout: float = 0.2,
) -> InceptionResNetV2:
    """Build the network with the original's initial values, drawn from torch's global generator."""
    config = ModelConfig(
        num_classes=num_classes,
        blocks=blocks,
        width=width,
        residual_scale=residual_scale,
        dropout=dropout,
    )
    model = InceptionResNetV2(config)
    initialize(model)
    return model


def initialize(model: nn.Module) -> None:
    """Set the original's initial values (fb.resnet.torch, models/init.lua).

    Convolutions normal(0, sqrt(2 / (kW kH out_channels))); batch norm weight 1, bias 0; linear
    weight uniform +-1/sqrt(in), bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


class Normalized(nn.Module):
    """A network that normalises its input: uint8 (N, S, S, 3) RGB -> float32 logits.

    It runs everywhere outside training, in the torch runner and every export, so that mean and std
    are applied in one place. `mean` and `std` are for pixels scaled to 0..1.
    """

    pixel_mean: Tensor
    pixel_scale: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        mean_chw = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1) * 255
        scale_chw = 1 / (torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1) * 255)
        self.register_buffer("pixel_mean", mean_chw.float(), persistent=False)
        self.register_buffer("pixel_scale", scale_chw.float(), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Map uint8 (N, S, S, 3) to normalised float32 (N, 3, S, S)."""
        # Cast before permuting: TensorRT accepts uint8 only as the input of a cast.
        x = images.float().permute(0, 3, 1, 2).contiguous()
        return (x - self.pixel_mean) * self.pixel_scale

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 (N, S, S, 3) to float32 logits (N, num_classes)."""
        logits: Tensor = self.model(self.normalize(images))
        return logits
