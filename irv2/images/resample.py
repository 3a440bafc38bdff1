"""Resampling methods by name, because the choice is worth up to a point of top-1 error.

`torch7-bicubic` is the original's (torch/image, generic/image.c, scaleBicubic): Catmull-Rom with
four taps, corners aligned, no antialiasing. `opencv-cubic` is OpenCV's INTER_CUBIC (a = -0.75,
half-pixel centres, no antialiasing). `pillow-bicubic` is Pillow's BICUBIC (a = -0.5, antialiased),
which the TF-slim lineage's weights expect.
"""

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from irv2.images.bicubic import interpolate, taps
from irv2.types import UInt8Array


class Window(NamedTuple):
    """The wanted part of a resized image, in pixels of the resized image."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, image_hwc: UInt8Array) -> UInt8Array:
        """Return this part of (H, W, 3) as a view."""
        top, left, height, width = self
        return image_hwc[top : top + height, left : left + width]


def resize_torch7(
    image_hwc: UInt8Array, height: int, width: int, window: Window, out: UInt8Array | None = None
) -> UInt8Array:
    """Resize uint8 RGB (H, W, 3) to (height, width) by Torch7's bicubic; return only `window`.

    Like all resamplers, it writes into `out`, uint8 (window.height, window.width, 3), if given.
    """
    if out is None:
        out = np.empty((window.height, window.width, 3), np.uint8)
    rows = taps(image_hwc.shape[0], height, window.top, window.height)
    columns = taps(image_hwc.shape[1], width, window.left, window.width)
    interpolate(image_hwc, rows, columns, out)
    return out


def resize_opencv(
    image_hwc: UInt8Array, height: int, width: int, window: Window, out: UInt8Array | None = None
) -> UInt8Array:
    """Resize like `resize_torch7`, but by OpenCV's INTER_CUBIC."""
    whole = out if window == (0, 0, height, width) else None  # of a random crop: nothing to cut
    resized = cv2.resize(image_hwc, (width, height), whole, interpolation=cv2.INTER_CUBIC)
    return _cut(np.asarray(resized, dtype=np.uint8), window, out)


def resize_pillow(
    image_hwc: UInt8Array, height: int, width: int, window: Window, out: UInt8Array | None = None
) -> UInt8Array:
    """Resize like `resize_torch7`, but by Pillow's antialiased BICUBIC."""
    cubic = Image.Resampling.BICUBIC
    # In two steps, rows first: Pillow 13 picks the order by size, which changes up to 23 levels.
    wide = Image.fromarray(image_hwc).resize((width, image_hwc.shape[0]), cubic)
    return _cut(np.asarray(wide.resize((width, height), cubic)), window, out)


def _cut(image_hwc: UInt8Array, window: Window, out: UInt8Array | None) -> UInt8Array:
    part = window.cut(image_hwc)
    if out is None:
        return part
    if not np.shares_memory(part, out):
        out[...] = part
    return out


RESAMPLERS = {
    "torch7-bicubic": resize_torch7,
    "opencv-cubic": resize_opencv,
    "pillow-bicubic": resize_pillow,
}
