"""Resizing by name, because the choice is worth up to a point of top-1 error.

`torch7-bicubic` is the original's (torch/image, generic/image.c, scaleBicubic): four taps of
Catmull-Rom, corners aligned, no antialiasing. `opencv-cubic` is OpenCV's INTER_CUBIC (a = -0.75,
half-pixel centres, no antialiasing). `pillow-bicubic` is Pillow's BICUBIC (a = -0.5, antialiased),
which the TF-slim lineage's weights expect.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from irv2.types import FloatArray, IntArray, UInt8Array


class Window(NamedTuple):
    """The part of a resized image that is wanted, in pixels of the resized image."""

    top: int
    left: int
    height: int
    width: int


def resize_torch7(image_hwc: UInt8Array, height: int, width: int, window: Window) -> UInt8Array:
    """Torch7's bicubic: uint8 RGB (H, W, 3) resized to (height, width), of it the `window`.

    The original keeps floats; here the result is rounded and clipped to uint8 once, at the end
    (a few pixels of photographs overshoot 0..255).
    """
    rows, row_weights = _taps(image_hwc.shape[0], height, window.top, window.height)
    columns, column_weights = _taps(image_hwc.shape[1], width, window.left, window.width)
    first, last = int(rows.min()), int(rows.max()) + 1
    source = image_hwc[first:last].astype(np.float32)
    # Rows first, then columns, as the original.
    wide = _sum_of_taps([source[:, column] for column in columns], column_weights[:, None, :, None])
    tall = _sum_of_taps([wide[row - first] for row in rows], row_weights[:, :, None, None])
    return np.clip(np.rint(tall), 0, 255).astype(np.uint8)


def _sum_of_taps(taps: list[FloatArray], weights: FloatArray) -> FloatArray:
    total: FloatArray = taps[0] * weights[0]
    for tap, weight in zip(taps[1:], weights[1:], strict=True):
        total += tap * weight
    return total


def _taps(src_len: int, dst_len: int, start: int, count: int) -> tuple[IntArray, FloatArray]:
    """Source indices and weights, each (4, count), for `count` outputs from `start` on.

    Positions are computed in float32 as the original does. Taps beyond an edge are extrapolated
    linearly (p0 = 2 p1 - p2), which is a linear map and so is folded into the weights.
    """
    scale = np.float32(src_len - 1) / np.float32(max(dst_len - 1, 1))
    position = np.arange(start, start + count, dtype=np.float32) * scale
    position[np.arange(start, start + count) == dst_len - 1] = src_len - 1
    base = np.minimum(position.astype(np.int64), max(src_len - 2, 0))
    t = position - base.astype(np.float32)
    weights = np.stack([
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    ])  # fmt: skip
    before, after = base == 0, base + 2 >= src_len
    weights[1, before] += 2 * weights[0, before]
    weights[2, before] -= weights[0, before]
    weights[0, before] = 0
    weights[2, after] += 2 * weights[3, after]
    weights[1, after] -= weights[3, after]
    weights[3, after] = 0
    indices = base + np.arange(-1, 3)[:, None]
    return np.clip(indices, 0, src_len - 1), weights.astype(np.float32)


def resize_opencv(image_hwc: UInt8Array, height: int, width: int, window: Window) -> UInt8Array:
    """OpenCV's INTER_CUBIC, of it the `window`."""
    resized = cv2.resize(image_hwc, (width, height), interpolation=cv2.INTER_CUBIC)
    return _cut(np.asarray(resized, dtype=np.uint8), window)


def resize_pillow(image_hwc: UInt8Array, height: int, width: int, window: Window) -> UInt8Array:
    """Pillow's antialiased BICUBIC, of it the `window`."""
    cubic = Image.Resampling.BICUBIC
    # In two steps, each row first: Pillow 13 chooses the order by size, up to 23 grey levels apart.
    wide = Image.fromarray(image_hwc).resize((width, image_hwc.shape[0]), cubic)
    return _cut(np.asarray(wide.resize((width, height), cubic)), window)


def _cut(image_hwc: UInt8Array, window: Window) -> UInt8Array:
    top, left, height, width = window
    return image_hwc[top : top + height, left : left + width]


RESAMPLERS = {
    "torch7-bicubic": resize_torch7,
    "opencv-cubic": resize_opencv,
    "pillow-bicubic": resize_pillow,
}
