"""Several views of one image, and the combination of the network's answers into one.

    1    the central crop
    10   corners and centre of the resized image, and their mirrors; logits are summed
         (fb.resnet.torch, datasets/transforms.lua: TenCrop)
    12   corners and centre of the resized image's central square, the whole square reduced to the
         size of a crop, and their mirrors; softmax is averaged
    144  the same six views of three squares (left or top, centre, right or bottom) at four sizes,
         and their mirrors; softmax is averaged (arXiv:1409.4842, section 7)

The paper (arXiv:1602.07261, tables 3 and 4) reports 12 and 144 crops and defines neither. 144 is
its authors' earlier scheme. 12 is our interpretation: that scheme with one size and one square. Its
sizes 256, 288, 320 and 352 assume a resize to 256; here they are scaled to the network's resize.
"""

import itertools

import numpy as np

from irv2.images.preprocess import Preprocess, center_window, checked_shape, resize_and_crop
from irv2.images.resample import RESAMPLERS, Window
from irv2.types import Float64Array, FloatArray, IntArray, UInt8Array

CROPS = (1, 10, 12, 144)
BATCH_SIZE = 32  # views in one forward pass, unless told otherwise
_SIZES = (256 / 256, 288 / 256, 320 / 256, 352 / 256)


def views(image_hwc: UInt8Array, config: Preprocess, crops: int) -> UInt8Array:
    """Cut uint8 RGB (H, W, 3) of any size into its views, uint8 (crops, S, S, 3).

    `crops` is one of CROPS. Raises ImageError if the resized image has too many pixels.
    """
    if crops == 1:
        return resize_and_crop(image_hwc, config)[None]
    if crops == 10:
        return _with_mirrors(_five(_resized(image_hwc, config.resize, config), config.crop))
    sizes = _SIZES if crops == 144 else _SIZES[:1]
    images = [_resized(image_hwc, round(config.resize * size), config) for size in sizes]
    squares = [square for image in images for square in _squares(image, 3 if crops == 144 else 1)]
    return _with_mirrors([view for square in squares for view in _six(square, config)])


def combine(logits: FloatArray, crops: int) -> FloatArray:
    """Combine logits of views (N x crops, classes), image by image, into float32 (N, classes).

    Logits are summed for 10 crops; 12 and 144 give the logarithm of the mean softmax.
    """
    by_image = logits.reshape(-1, crops, logits.shape[1])
    if crops == 1:
        return by_image[:, 0]
    if crops == 10:
        total: FloatArray = by_image.sum(axis=1)
        return total
    by_view = by_image.astype(np.float64)
    by_view -= np.logaddexp.reduce(by_view, axis=2, keepdims=True)
    mean: FloatArray = (np.logaddexp.reduce(by_view, axis=1) - np.log(crops)).astype(np.float32)
    return mean


def log_probabilities(combined: FloatArray, crops: int, classes: IntArray) -> Float64Array:
    """Return the logarithm of the probability of one class per row of what `combine` gives: (N,).

    The logits of 10 crops count by their mean here. Their sum has the same order, but would claim
    to be as sure as ten independent pictures.
    """
    logits = combined.astype(np.float64) / (10 if crops == 10 else 1)
    chosen = np.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
    found: Float64Array = chosen - np.logaddexp.reduce(logits, axis=1)
    return found


def _resized(image_hwc: UInt8Array, shorter: int, config: Preprocess) -> UInt8Array:
    height, width = checked_shape(image_hwc, shorter)
    whole = Window(0, 0, height, width)
    return RESAMPLERS[config.resampling](image_hwc, height, width, whole)


def _squares(image_hwc: UInt8Array, num: int) -> list[UInt8Array]:
    """Cut out the central square, or three: also those at both ends of the longer side."""
    height, width = image_hwc.shape[:2]
    side = min(height, width)
    center = center_window(height, width, side)
    ends = [Window(0, 0, side, side), Window(height - side, width - side, side, side)]
    return [window.cut(image_hwc) for window in ([center] if num == 1 else [center, *ends])]


def _five(image_hwc: UInt8Array, size: int) -> list[UInt8Array]:
    """Cut out the four corners and the centre."""
    height, width = image_hwc.shape[:2]
    corners = [
        Window(top, left, size, size)
        for top, left in itertools.product((0, height - size), (0, width - size))
    ]
    windows = [*corners, center_window(height, width, size)]
    return [window.cut(image_hwc) for window in windows]


def _six(square: UInt8Array, config: Preprocess) -> list[UInt8Array]:
    """Cut out the five views of a square and add the whole square, resized."""
    size = config.crop
    small = RESAMPLERS[config.resampling](square, size, size, Window(0, 0, size, size))
    return [*_five(square, size), small]


def _with_mirrors(images: list[UInt8Array]) -> UInt8Array:
    stacked = np.stack(images)
    return np.concatenate([stacked, stacked[:, :, ::-1]])
