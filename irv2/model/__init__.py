"""The networks; the paper's is available as `irv2.model.inception_resnet_v2`."""

from irv2.model.paper import inception_resnet_v2

__all__ = ["inception_resnet_v2"]
