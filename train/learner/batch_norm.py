"""Batch norm whose statistics are taken over groups of a batch.

The original trained on two GPUs with 32 images each, whose statistics were never shared, and saved
the first GPU's running statistics. One process reaches the same numbers by normalising each group
of its batch alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from irv2.train.settings import split_groups


class GroupBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over `num_groups` equal parts of the batch; state_dict as for nn.BatchNorm2d.

    A short batch is split as evenly as possible; under 4 images it is one group. Running
    statistics are those of the first group. In eval mode it is nn.BatchNorm2d.
    """

    num_groups: int
    is_frozen = False  # see frozen_statistics

    @classmethod
    def like(cls, other: nn.BatchNorm2d, num_groups: int) -> Self:
        """Make a grouped batch norm that shares `other`'s parameters and buffers."""
        norm = cls(other.num_features, eps=other.eps, momentum=other.momentum)
        norm.weight, norm.bias = other.weight, other.bias
        norm.running_mean, norm.running_var = other.running_mean, other.running_var
        norm.num_batches_tracked = other.num_batches_tracked
        norm.num_groups = num_groups
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(x)
        if not len(x):  # a process without images in a short batch: its gradients are zeros
            return x * self.weight[:, None, None] + self.bias[:, None, None]
        first, *others = x.tensor_split(split_groups(len(x), self.num_groups))
        normalized = [self._normalize_first(first)]
        normalized += [
            F.batch_norm(group, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for group in others
        ]
        return torch.cat(normalized) if others else normalized[0]

    def _normalize_first(self, group: Tensor) -> Tensor:
        if not self.is_frozen:
            return super().forward(group)
        assert self.running_mean is not None
        assert self.running_var is not None
        # Update copies instead: a recomputed pass must save the same tensors as the first pass.
        return F.batch_norm(
            group,
            self.running_mean.clone(),
            self.running_var.clone(),
            self.weight,
            self.bias,
            training=True,
            eps=self.eps,
        )


def group_batch_norm(module: nn.Module, num_groups: int) -> None:
    """Replace every batch norm inside `module` with a grouped one with the same parameters."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, GroupBatchNorm2d.like(child, num_groups))
        else:
            group_batch_norm(child, num_groups)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within the block, training passes through `module` leave its running statistics unchanged.

    For passes other than the first over a step's first group: later micro-batches, and activations
    recomputed in the backward pass.
    """
    thawed = [
        norm
        for norm in module.modules()
        if isinstance(norm, GroupBatchNorm2d) and not norm.is_frozen
    ]
    for norm in thawed:
        norm.is_frozen = True
    try:
        yield
    finally:
        for norm in thawed:
            norm.is_frozen = False
