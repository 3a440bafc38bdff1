"""The other Inception-ResNet-v2: TF-slim's, 55.8 million parameters.

The network whose weights TF-slim published and timm, Cadene and Keras ship. Unlike the paper's
(paper.py), its stem is Inception-v3's and ends in an inception block, its grids have 320, 1088 and
2080 channels and twice the blocks, the residual bodies end in a convolution with bias instead of
batch norm, each grid has its own residual scale, and the last block has neither scale nor ReLU.
Names in comments are the published ones.

Source: TF-slim's nets/inception_resnet_v2.py, whose inception_resnet_v2_arg_scope gives batch norm
(decay 0.9997, epsilon 0.001) and dropout (it keeps 0.8). Three things of its training are not here:
the auxiliary classifier, its weight decay (4e-5, without that of batch norm), and batch norm
without a gain. Ours has one, as timm's has, which begins at 1.
"""

from functools import partial

from torch import Tensor, nn

from irv2.model.paper import Concat, ConvBN, InceptionResNet, Residual
from irv2.network_config import SlimConfig

SCALE_A, SCALE_B, SCALE_C = 0.17, 0.10, 0.20


conv_bn = partial(ConvBN, eps=1e-3, momentum=SlimConfig.bn_momentum)


class SlimStem(nn.Sequential):
    """Stem (N, 3, 299, 299) -> (N, 320, 35, 35): conv2d_1a ... conv2d_4a, mixed_5b."""

    def __init__(self, config: SlimConfig) -> None:
        c32, c48, c64, c80, c96, c192 = (config.channels(n) for n in (32, 48, 64, 80, 96, 192))
        super().__init__(
            conv_bn(3, c32, 3, stride=2),
            conv_bn(c32, c32, 3),
            conv_bn(c32, c64, 3, same=True),
            nn.MaxPool2d(3, stride=2),
            conv_bn(c64, c80, 1),
            conv_bn(c80, c192, 3),
            nn.MaxPool2d(3, stride=2),
            Concat(
                conv_bn(c192, c96, 1),
                nn.Sequential(conv_bn(c192, c48, 1), conv_bn(c48, c64, 5, same=True)),
                nn.Sequential(
                    conv_bn(c192, c64, 1),
                    conv_bn(c64, c96, 3, same=True),
                    conv_bn(c96, c96, 3, same=True),
                ),
                nn.Sequential(
                    nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
                    conv_bn(c192, c64, 1),
                ),
            ),
        )
        self.out_channels = c96 + c64 + c96 + c64


class Block35(Residual):
    """Residual block of the 35x35 grid: branches of 32 + 32 + 64 channels."""

    def __init__(self, channels: int, config: SlimConfig) -> None:
        c32, c48, c64 = (config.channels(n) for n in (32, 48, 64))
        branches: list[nn.Module] = [
            conv_bn(channels, c32, 1),
            nn.Sequential(conv_bn(channels, c32, 1), conv_bn(c32, c32, 3, same=True)),
            nn.Sequential(
                conv_bn(channels, c32, 1),
                conv_bn(c32, c48, 3, same=True),
                conv_bn(c48, c64, 3, same=True),
            ),
        ]
        super().__init__(branches, _project(c32 + c32 + c64, channels), SCALE_A)


class Block17(Residual):
    """Residual block of the 17x17 grid: branches of 192 + 192 channels, 1x7 before 7x1."""

    def __init__(self, channels: int, config: SlimConfig) -> None:
        c128, c160, c192 = (config.channels(n) for n in (128, 160, 192))
        branches: list[nn.Module] = [
            conv_bn(channels, c192, 1),
            nn.Sequential(
                conv_bn(channels, c128, 1),
                conv_bn(c128, c160, (1, 7), same=True),
                conv_bn(c160, c192, (7, 1), same=True),
            ),
        ]
        super().__init__(branches, _project(2 * c192, channels), SCALE_B)


class Block8(Residual):
    """Residual block of the 8x8 grid: branches of 192 + 256 channels, 1x3 before 3x1.

    The `last` block has neither scale nor ReLU.
    """

    def __init__(self, channels: int, config: SlimConfig, *, last: bool) -> None:
        c192, c224, c256 = (config.channels(n) for n in (192, 224, 256))
        branches: list[nn.Module] = [
            conv_bn(channels, c192, 1),
            nn.Sequential(
                conv_bn(channels, c192, 1),
                conv_bn(c192, c224, (1, 3), same=True),
                conv_bn(c224, c256, (3, 1), same=True),
            ),
        ]
        project = _project(c192 + c256, channels)
        super().__init__(branches, project, 1.0 if last else SCALE_C, linear=last)


class SlimReductionA(Concat):
    """Reduction 35x35 -> 17x17 (mixed_6a): adds 768 channels."""

    def __init__(self, channels: int, config: SlimConfig) -> None:
        c256, c384 = config.channels(256), config.channels(384)
        super().__init__(
            conv_bn(channels, c384, 3, stride=2),
            nn.Sequential(
                conv_bn(channels, c256, 1),
                conv_bn(c256, c256, 3, same=True),
                conv_bn(c256, c384, 3, stride=2),
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.out_channels = channels + 2 * c384


class SlimReductionB(Concat):
    """Reduction 17x17 -> 8x8 (mixed_7a): adds 384 + 288 + 320 channels."""

    def __init__(self, channels: int, config: SlimConfig) -> None:
        c256, c288, c320, c384 = (config.channels(n) for n in (256, 288, 320, 384))
        super().__init__(
            nn.Sequential(conv_bn(channels, c256, 1), conv_bn(c256, c384, 3, stride=2)),
            nn.Sequential(conv_bn(channels, c256, 1), conv_bn(c256, c288, 3, stride=2)),
            nn.Sequential(
                conv_bn(channels, c256, 1),
                conv_bn(c256, c288, 3, same=True),
                conv_bn(c288, c320, 3, stride=2),
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.out_channels = channels + c384 + c288 + c320


class InceptionResNetV2Slim(InceptionResNet):
    """The whole network: normalised float (N, 3, S, S) -> logits (N, num_classes).

    S is 299 as published; anything from 75 works, since the pooling is global.
    """

    def __init__(self, config: SlimConfig) -> None:
        super().__init__()
        self.config = config
        num_a, num_b, num_c = config.blocks
        self.stem = SlimStem(config)
        channels = self.stem.out_channels
        self.blocks_a = nn.Sequential(*(Block35(channels, config) for _ in range(num_a)))
        self.reduction_a = SlimReductionA(channels, config)
        channels = self.reduction_a.out_channels
        self.blocks_b = nn.Sequential(*(Block17(channels, config) for _ in range(num_b)))
        self.reduction_b = SlimReductionB(channels, config)
        channels = self.reduction_b.out_channels
        self.blocks_c = nn.Sequential(
            *(Block8(channels, config, last=i == num_c - 1) for i in range(num_c))
        )
        num_features = config.channels(1536)
        self.head = conv_bn(channels, num_features, 1)  # conv2d_7b
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(num_features, config.num_classes)

    def features(self, images_nchw: Tensor) -> Tensor:
        """Map normalised float (N, 3, S, S) to features before dropout, (N, 1536) at full width."""
        x = self.blocks_a(self.stem(images_nchw))
        x = self.blocks_b(self.reduction_a(x))
        x = self.head(self.blocks_c(self.reduction_b(x)))
        features: Tensor = x.mean((2, 3))
        return features


def initialize(model: nn.Module) -> None:
    """Set TF-slim's initial values, from torch's global generator.

    Its arg scope names none, so they are the defaults of its conv2d and fully_connected: weights
    uniform +-sqrt(6 / (fan_in + fan_out)) (Xavier), biases 0. Batch norm begins at 1 and 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def _project(branch_channels: int, channels: int) -> nn.Sequential:
    """Build the 1x1 convolution that ends a residual body: with bias, without batch norm."""
    return nn.Sequential(nn.Conv2d(branch_channels, channels, 1))
