"""What the two networks can be built as. Without torch, whose import takes seconds."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The size of a network: the published one, or a narrower or shallower variant.

    `blocks` counts the residual blocks A, B, C; `width` scales every channel count, rounded to a
    multiple of 8. `arch` is the network's name in checkpoints, ONNX files, bundles and `GetModel`.
    A new running statistic is (1 - `bn_momentum`) x the old one + `bn_momentum` x the batch's; it
    matters in training alone.
    """

    arch: ClassVar[str]
    bn_momentum: ClassVar[float]  # of batch norm's running statistics, as published

    blocks: tuple[int, int, int]
    num_classes: int = 1000
    width: float = 1.0
    dropout: float = 0.2

    def channels(self, published: int) -> int:
        """Scale a channel count of the published network by `width`."""
        return max(8, round(published * self.width / 8) * 8)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for checkpoints."""
        return {**asdict(self), "blocks": list(self.blocks)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(NetworkConfig):
    """The configuration of the original's network."""

    arch: ClassVar[str] = "inception_resnet_v2"
    bn_momentum: ClassVar[float] = 0.1

    blocks: tuple[int, int, int] = (5, 10, 5)
    residual_scale: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SlimConfig(NetworkConfig):
    """The configuration of TF-slim's network."""

    arch: ClassVar[str] = "inception_resnet_v2_slim"
    bn_momentum: ClassVar[float] = 0.0003  # TF-slim's decay of 0.9997

    blocks: tuple[int, int, int] = (10, 20, 10)


NETWORKS: dict[str, type[NetworkConfig]] = {
    config.arch: config for config in (ModelConfig, SlimConfig)
}
FULL_SIZE: dict[str, NetworkConfig] = {
    config.arch: config for config in (ModelConfig(), SlimConfig())
}


def config_from_json(arch: str, fields: dict[str, Any]) -> NetworkConfig:
    """Read what `NetworkConfig.to_json` gave, for the `arch` of one of NETWORKS."""
    return NETWORKS[arch](**{**fields, "blocks": tuple(fields["blocks"])})
