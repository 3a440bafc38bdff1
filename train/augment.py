"""The original's augmentation: geometry on uint8 in the workers, colour as one affine map.

Source: fb.resnet.torch, datasets/transforms.lua and datasets/imagenet.lua. Brightness, contrast,
saturation, lighting and normalisation are all affine in RGB, and the original never clamps between
them, so the whole chain is one 3x4 matrix per image, applied per batch on the device.
"""

import math

import numpy as np
import torch
from torch import Tensor

from irv2.preprocess import Preprocess, resize_and_crop
from irv2.resample import RESAMPLERS, Window
from irv2.types import FloatArray, IntArray, UInt8Array

GREY = np.array([0.299, 0.587, 0.114])
JITTER = 0.4
LIGHTING_STD = 0.1
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([  # rows R, G, B
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
])  # fmt: skip


def random_sized_crop(
    image_hwc: UInt8Array, size: int, resampling: str, rng: np.random.Generator
) -> UInt8Array:  # fmt: skip
    """A random part of 8-100 % of the area, aspect 3/4-4/3, as uint8 (size, size, 3).

    Ten tries to fit one; else the shorter side is resized to `size` and the centre cut out.
    """
    height, width = image_hwc.shape[:2]
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        # The original rounds before it swaps.
        crop_width = math.floor(math.sqrt(area * aspect) + 0.5)
        crop_height = math.floor(math.sqrt(area / aspect) + 0.5)
        if rng.random() < 0.5:
            crop_width, crop_height = crop_height, crop_width
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = rng.integers(0, height - crop_height, endpoint=True)
            left = rng.integers(0, width - crop_width, endpoint=True)
            crop = image_hwc[top : top + crop_height, left : left + crop_width]
            return RESAMPLERS[resampling](crop, size, size, Window(0, 0, size, size))
    config = Preprocess(resize=size, crop=size, resampling=resampling)
    return resize_and_crop(image_hwc, config)


def random_shift(
    image_hwc: UInt8Array, max_shift: float, rng: np.random.Generator
) -> UInt8Array:  # fmt: skip
    """Move the picture by up to `max_shift` of its side each way; its edge pixels are repeated."""
    height, width = image_hwc.shape[:2]
    rows = _shifted(height, max_shift, rng)
    columns = _shifted(width, max_shift, rng)
    moved: UInt8Array = np.ascontiguousarray(image_hwc[rows][:, columns])
    return moved


def _shifted(side: int, max_shift: float, rng: np.random.Generator) -> IntArray:
    reach = round(side * max_shift)
    shift = int(rng.integers(-reach, reach, endpoint=True))
    return np.clip(np.arange(side) - shift, 0, side - 1)


def color_matrix(
    image_hwc: UInt8Array, config: Preprocess, rng: np.random.Generator
) -> FloatArray:  # fmt: skip
    """A random (3, 4) map from uint8 RGB to normalised values: jitter, lighting, normalisation.

    Brightness, contrast and saturation each blend by 1 + uniform(-0.4, 0.4), in random order;
    lighting adds principal components with weights normal(0, 0.1).
    """
    matrix, offset = np.eye(3), np.zeros(3)
    mean_rgb = image_hwc.mean(axis=(0, 1), dtype=np.float64) / 255
    for kind in rng.permutation(["brightness", "contrast", "saturation"]):
        alpha = 1 + rng.uniform(-JITTER, JITTER)
        blend, constant = alpha * np.eye(3), np.zeros(3)
        if kind == "contrast":  # with the mean grey of the picture as it is by now
            constant += (1 - alpha) * (GREY @ (matrix @ mean_rgb + offset))
        elif kind == "saturation":
            blend += (1 - alpha) * np.tile(GREY, (3, 1))
        matrix, offset = blend @ matrix, blend @ offset + constant
    offset += EIGENVECTORS @ (EIGENVALUES * rng.normal(0, LIGHTING_STD, 3))
    std = np.array(config.std)
    affine = np.column_stack([matrix / 255, offset - config.mean]) / std[:, None]
    color: FloatArray = affine.astype(np.float32)
    return color


def apply_color(images_nhwc: Tensor, matrices: Tensor, flips: Tensor) -> Tensor:
    """uint8 (N, S, S, 3), (N, 3, 4) maps and (N,) bools -> normalised float (N, 3, S, S).

    The result is in channels_last memory order. Images whose flip is set are mirrored.
    """
    num, height, width, _ = images_nhwc.shape
    pixels = images_nhwc.view(num, height * width, 3).to(matrices.dtype)
    colored = torch.baddbmm(matrices[:, None, :, 3], pixels, matrices[:, :, :3].transpose(1, 2))
    batch = colored.view(num, height, width, 3)
    batch = torch.where(flips[:, None, None, None], batch.flip(2), batch)
    return batch.permute(0, 3, 1, 2)
