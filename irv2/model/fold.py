"""A network for inference alone: batch norm and residual scales become part of the convolutions."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from irv2.model.paper import ConvBN, Residual

Model = TypeVar("Model", bound=nn.Module)


def fold(model: Model) -> Model:
    """A copy in which every ConvBN is one convolution and no residual is scaled any more.

    Computed in float64, so that it is exact up to float32 rounding.
    """
    model = copy.deepcopy(model).double().eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, ConvBN):
            convolution, batch_norm, *rest = module
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(batch_norm, nn.BatchNorm2d)
            fused = fuse_conv_bn_eval(convolution, batch_norm)
            model.set_submodule(name, nn.Sequential(fused, *rest))
    for name, module in list(model.named_modules()):
        if isinstance(module, Residual):
            model.set_submodule(name, _FoldedResidual(module))
    return model.float()


class _FoldedResidual(nn.Module):
    """A Residual whose scale is part of its last 1x1 convolution."""

    def __init__(self, residual: Residual) -> None:
        super().__init__()
        self.branches, self.project = residual.branches, residual.project
        self.linear = residual.linear
        convolution = self.project[0]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        with torch.no_grad():
            convolution.weight *= residual.residual_scale
            convolution.bias *= residual.residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        total: Tensor = x + self.project(self.branches(x))
        return total if self.linear else F.relu(total)
