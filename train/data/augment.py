"""The original's augmentation: geometry on uint8 in the workers, colour as one affine map.

Source: fb.resnet.torch, datasets/transforms.lua and datasets/imagenet.lua. Brightness, contrast,
saturation, lighting and normalisation are all affine in RGB, and the original never clamps between
them, so the whole chain is one 3x4 matrix per image, applied per batch on the device.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from irv2.images.preprocess import Preprocess, resize_and_crop
from irv2.images.resample import RESAMPLERS, Window
from irv2.train.settings import MIN_AREA
from irv2.types import FloatArray, IntArray, UInt8Array

GREY = np.array([0.299, 0.587, 0.114])
BRIGHTNESS, CONTRAST, SATURATION = range(3)
JITTER = 0.4
LIGHTING_STD = 0.1
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array([  # rows R, G, B
    [-0.5675, 0.7192, 0.4009],
    [-0.5808, -0.0045, -0.8140],
    [-0.5836, -0.6948, 0.4203],
])  # fmt: skip
PRINCIPAL = EIGENVECTORS * EIGENVALUES


class ColorDraw(NamedTuple):
    """The random values for an image's colours."""

    order: tuple[int, ...]  # of BRIGHTNESS, CONTRAST and SATURATION
    alphas: tuple[float, ...]  # blending weights, in that order
    lighting: tuple[float, ...]  # weights of the three principal components


def random_sized_crop(
    image_hwc: UInt8Array,
    size: int,
    resampling: str,
    rng: np.random.Generator,
    out: UInt8Array | None = None,
    min_area: float = MIN_AREA,
) -> UInt8Array:
    """Resize a random part (aspect 3/4-4/3) to uint8 (size, size, 3).

    `min_area` is that of the smallest part, as a fraction of the image. If no part fits, the
    shorter side is resized to `size` and the centre cut out.
    """
    part = draw_crop(image_hwc.shape[0], image_hwc.shape[1], rng, min_area)
    if part is None:
        config = Preprocess(resize=size, crop=size, resampling=resampling)
        return resize_and_crop(image_hwc, config, out)
    return RESAMPLERS[resampling](part.cut(image_hwc), size, size, Window(0, 0, size, size), out)


def draw_crop(
    height: int, width: int, rng: np.random.Generator, min_area: float = MIN_AREA
) -> Window | None:
    """Draw a random part of an image, in its pixels; None if none of ten tries fits."""
    for _ in range(10):
        area = rng.uniform(min_area, 1.0) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        # The original rounds before it swaps.
        crop_width = math.floor(math.sqrt(area * aspect) + 0.5)
        crop_height = math.floor(math.sqrt(area / aspect) + 0.5)
        if rng.random() < 0.5:
            crop_width, crop_height = crop_height, crop_width
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = int(rng.integers(0, height - crop_height, endpoint=True))
            left = int(rng.integers(0, width - crop_width, endpoint=True))
            return Window(top, left, crop_height, crop_width)
    return None


def random_shift(
    image_hwc: UInt8Array, max_shift: float, rng: np.random.Generator, out: UInt8Array | None = None
) -> UInt8Array:
    """Shift uint8 (H, W, 3) by up to `max_shift` of its side each way, repeating edge pixels."""
    height, width = image_hwc.shape[:2]
    rows = _shifted(height, max_shift, rng)
    columns = _shifted(width, max_shift, rng)
    moved: UInt8Array = np.take(image_hwc[rows], columns, axis=1, out=out)
    return moved


def _shifted(side: int, max_shift: float, rng: np.random.Generator) -> IntArray:
    reach = round(side * max_shift)
    shift = int(rng.integers(-reach, reach, endpoint=True))
    return np.clip(np.arange(side) - shift, 0, side - 1)


def erase(image_hwc: UInt8Array, rng: np.random.Generator) -> None:
    """Fill a random part of uint8 (H, W, 3) with random pixels (arXiv:1708.04896, table 1).

    It has 2-40 % of the area and an aspect of 3/10-10/3, the first of such that fits.
    """
    height, width, _ = image_hwc.shape
    while True:
        area = rng.uniform(0.02, 0.4) * height * width
        aspect = rng.uniform(3 / 10, 10 / 3)
        part_height, part_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if part_height < height and part_width < width:
            break
    top = int(rng.integers(height - part_height, endpoint=True))
    left = int(rng.integers(width - part_width, endpoint=True))
    part = image_hwc[top : top + part_height, left : left + part_width]
    part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)


def draw_color(rng: np.random.Generator) -> ColorDraw:
    """Draw the jitter's order and alphas 1 + uniform(-0.4, 0.4), and lighting normal(0, 0.1)."""
    order = tuple(rng.permutation(3).tolist())
    alphas = tuple((1 + rng.uniform(-JITTER, JITTER, 3)).tolist())
    lighting = tuple(rng.normal(0, LIGHTING_STD, 3).tolist())
    return ColorDraw(order, alphas, lighting)


def color_matrix(image_hwc: UInt8Array, draw: ColorDraw, config: Preprocess) -> FloatArray:
    """Compute the (3, 4) map from uint8 RGB to normalised values: jitter, lighting, normalisation.

    Every step of the jitter blends with black, with the image's mean grey or with each pixel's
    grey. So after every step channel x has become own * x + grey * grey(x) + constant, with the
    same coefficients for all channels.
    """
    mean_grey = float(GREY @ cv2.mean(image_hwc)[:3])  # a hundred times faster than NumPy's mean
    own, grey, constant = 1 / 255, 0.0, 0.0
    for kind, alpha in zip(draw.order, draw.alphas, strict=True):
        other_grey, other_constant = 0.0, 0.0
        if kind == CONTRAST:
            other_constant = (own + grey) * mean_grey + constant
        elif kind == SATURATION:
            other_grey, other_constant = own + grey, constant
        own *= alpha
        grey = alpha * grey + (1 - alpha) * other_grey
        constant = alpha * constant + (1 - alpha) * other_constant
    affine = np.empty((3, 4))
    affine[:, :3] = own * np.eye(3) + grey * GREY
    affine[:, 3] = constant + PRINCIPAL @ draw.lighting - config.mean
    color: FloatArray = (affine / np.array(config.std)[:, None]).astype(np.float32)
    return color


def apply_color(images_nhwc: Tensor, matrices: Tensor, flips: Tensor) -> Tensor:
    """Colour uint8 (N, S, S, 3) by (N, 3, 4) maps, mirror by (N,) bools: float (N, 3, S, S).

    The result is normalised and in channels_last memory order.
    """
    color = color_on_cpu if images_nhwc.device.type == "cpu" else color_on_device
    return color(images_nhwc, matrices, flips).permute(0, 3, 1, 2)


def color_on_device(images_nhwc: Tensor, matrices: Tensor, flips: Tensor) -> Tensor:
    """Do `apply_color` on a GPU, returning float (N, S, S, 3)."""
    images = torch.where(flips[:, None, None, None], images_nhwc.flip(2), images_nhwc)
    pixels = images.flatten(1, 2).to(matrices.dtype)
    colored = torch.baddbmm(matrices[:, None, :, 3], pixels, matrices[:, :, :3].transpose(1, 2))
    return colored.view(images.shape)


def color_on_cpu(images_nhwc: Tensor, matrices: Tensor, flips: Tensor) -> Tensor:
    """Do `color_on_device` on a CPU, where OpenCV takes a tenth of torch's time."""
    # NumPy asks the system for huge pages, which takes a third of torch.empty's time.
    colored = torch.from_numpy(np.empty(images_nhwc.shape, matrices.numpy().dtype))
    for image, matrix, flip, out in zip(
        images_nhwc.numpy(), matrices.numpy(), flips.tolist(), colored.numpy(), strict=True
    ):
        mirrored = cv2.flip(image, 1) if flip else image
        cv2.transform(mirrored.astype(matrix.dtype), matrix, out)
    return colored
