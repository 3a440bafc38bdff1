"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): images mixed with a partner.

How they are mixed is drawn for each step, from seed and step alone. The partner is the next image
of the batch-norm group: the order within a batch is random already. So micro-batches and processes
mix what a whole batch in one pass would.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from irv2.train.settings import Recipe, split_groups

STREAM = (0, 1)  # after seed and step: sets these draws apart from dropout's, of a group


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What the partner gives: all pixels, blended, or a box of them, rows and columns.

    `own_share` is the weight of an image itself and of its label; the partner's is the rest.
    """

    own_share: float
    box: tuple[slice, slice] | None = None

    def images(self, images_nchw: Tensor, partners: Tensor) -> Tensor:
        """Mix each of (N, C, H, W) with the one that (N,) `partners` names; may change its input.

        Another copy of the images would take as long as the mixing.
        """
        if self.box is None:
            return images_nchw[partners].lerp_(images_nchw, self.own_share)
        rows, columns = self.box
        images_nchw[:, :, rows, columns] = images_nchw[partners, :, rows, columns]
        return images_nchw


def draw_mix(recipe: Recipe, step: int) -> Mix | None:
    """Draw how the images of `step` are mixed; None if the recipe mixes none.

    If it has both kinds, each takes half of the steps.
    """
    if not recipe.mixup and not recipe.cutmix:
        return None
    rng = np.random.default_rng([recipe.seed, step, *STREAM])
    is_cutmix = rng.random() < (0.5 if recipe.mixup and recipe.cutmix else bool(recipe.cutmix))
    alpha = recipe.cutmix if is_cutmix else recipe.mixup
    own_share = float(rng.beta(alpha, alpha))
    if not is_cutmix:
        return Mix(own_share=own_share)
    return _cut(own_share, recipe.image_size, rng)


def _cut(own_share: float, side: int, rng: np.random.Generator) -> Mix:
    """Place the partner's box, which the image's edges may cut; its area decides the shares."""
    half = side * math.sqrt(1 - own_share) / 2
    ends = [
        tuple(min(max(round(centre + reach), 0), side) for reach in (-half, half))
        for centre in rng.uniform(0, side, 2)
    ]
    (top, bottom), (left, right) = ends
    area = (bottom - top) * (right - left)
    return Mix(own_share=1 - area / side**2, box=(slice(top, bottom), slice(left, right)))


def partners(num_images: int, num_groups: int, device: torch.device) -> Tensor:
    """Return the index of each image's partner, in a pass of `num_groups` batch-norm groups."""
    groups = torch.arange(num_images).tensor_split(split_groups(num_images, num_groups))
    return torch.cat([group.roll(-1) for group in groups]).to(device)
