"""Names for the arrays passed between modules, and a check for images that users pass in."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irv2.errors import ImageError, ImageReason

UInt8Array = NDArray[np.uint8]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
ImageSource = str | Path | bytes | UInt8Array  # a file, encoded bytes, or RGB (H, W, 3)


def check_rgb(image: object) -> None:
    """Raise ImageError unless `image` is a uint8 RGB array (H, W, 3) with at least one pixel."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return
        got = f"{image.dtype} {image.shape}"
    else:
        got = type(image).__name__
    raise ImageError(ImageReason.BAD_PIXELS, got, "a path, bytes or uint8 RGB (H, W, 3)")
