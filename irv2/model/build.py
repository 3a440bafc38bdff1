"""The two networks named Inception-ResNet-v2, and one function that builds either.

`inception_resnet_v2` is the paper's, which the original trained (31.6 million parameters);
`inception_resnet_v2_slim` is TF-slim's, whose weights timm, Cadene and Keras ship (55.8 million).
Weights of one do not fit the other.
"""

from typing import Any

from irv2.model import paper, slim
from irv2.model.paper import InceptionResNetV2, ModelConfig, NetworkConfig
from irv2.model.slim import InceptionResNetV2Slim, SlimConfig

Network = InceptionResNetV2 | InceptionResNetV2Slim
NETWORKS: dict[str, type[NetworkConfig]] = {
    config.arch: config for config in (ModelConfig, SlimConfig)
}
FULL_SIZE: dict[str, NetworkConfig] = {
    config.arch: config for config in (ModelConfig(), SlimConfig())
}


def build(config: NetworkConfig) -> Network:
    """Build the network of a configuration, with torch's own initial values."""
    if isinstance(config, SlimConfig):
        return InceptionResNetV2Slim(config)
    assert isinstance(config, ModelConfig)
    return InceptionResNetV2(config)


def initialize(model: Network) -> None:
    """Set the initial values of the network's published code, from torch's global generator."""
    own = slim if isinstance(model, InceptionResNetV2Slim) else paper
    own.initialize(model)


def config_from_json(arch: str, fields: dict[str, Any]) -> NetworkConfig:
    """Read what `NetworkConfig.to_json` gave, for the `arch` of one of NETWORKS."""
    return NETWORKS[arch](**{**fields, "blocks": tuple(fields["blocks"])})
