"""TrivialAugment (arXiv:2103.10158): one random operation of random strength for every image.

There is nothing to tune. The operations are Pillow's; their ranges are the paper's wide ones.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from irv2.types import UInt8Array

Operation = Callable[[Image.Image, float], Image.Image]
STRENGTHS = 31  # 0 to 30, equally likely


def trivial_augment(image_hwc: UInt8Array, rng: np.random.Generator) -> None:
    """Change uint8 RGB (H, W, 3) in place. Pixels that come from outside the image are black."""
    operation = OPERATIONS[rng.integers(len(OPERATIONS))]
    strength = int(rng.integers(STRENGTHS)) / (STRENGTHS - 1)
    sign = 1 if rng.random() < 0.5 else -1
    image_hwc[:] = np.asarray(operation(Image.fromarray(image_hwc), sign * strength))


def _affine(image: Image.Image, *rows: float) -> Image.Image:
    """Take each pixel (x, y), counted from the centre, from a x + b y + c and d x + e y + f."""
    a, b, c, d, e, f = rows
    x, y = (image.width - 1) / 2, (image.height - 1) / 2
    matrix = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, v: kind(image).enhance(1 + 0.99 * v)


# By a strength v from -1 to 1.
OPERATIONS: tuple[Operation, ...] = (
    lambda image, _: image,
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, v: image.rotate(135 * v),
    lambda image, v: ImageOps.solarize(image, math.ceil(256 * (1 - abs(v)))),
    lambda image, v: ImageOps.posterize(image, 8 - round(6 * abs(v))),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, v: _affine(image, 1, 0.99 * v, 0, 0, 1, 0),  # shear
    lambda image, v: _affine(image, 1, 0, 0, 0.99 * v, 1, 0),
    lambda image, v: _affine(image, 1, 0, v * image.width / 7, 0, 1, 0),  # shift: 32 of 224 pixels
    lambda image, v: _affine(image, 1, 0, 0, 0, 1, v * image.height / 7),
)
