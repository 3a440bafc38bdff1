"""The two networks named Inception-ResNet-v2, and one function that builds either.

`inception_resnet_v2` is the paper's, which the original trained (31.6 million parameters);
`inception_resnet_v2_slim` is TF-slim's, whose weights timm, Cadene and Keras ship (55.8 million).
Weights of one do not fit the other.
"""

from irv2.model import paper, slim
from irv2.model.paper import InceptionResNetV2
from irv2.model.slim import InceptionResNetV2Slim
from irv2.network_config import ModelConfig, NetworkConfig, SlimConfig

Network = InceptionResNetV2 | InceptionResNetV2Slim


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
