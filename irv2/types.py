"""Names for the arrays passed between modules, and checks of the images that users pass in."""

from collections.abc import Iterable
from io import IOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irv2.errors import ImageError, ImageReason

UInt8Array = NDArray[np.uint8]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
ImageSource = str | Path | bytes | UInt8Array  # a file, encoded bytes, or RGB (H, W, 3)


def as_images(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Return images to iterate over: a lone one is one image, not its characters, bytes or rows.

    An array of four dimensions is a batch, one of objects or strings a collection.
    """
    if isinstance(images, np.ndarray):
        is_lone = images.ndim < 4 and images.dtype.kind not in "OU"
    else:
        encoded = str | bytes | bytearray | memoryview | IOBase
        is_lone = isinstance(images, encoded) or not isinstance(images, Iterable)
    return [images] if is_lone else images  # type: ignore[list-item, return-value]


def check_rgb(image: object) -> None:
    """Raise ImageError unless `image` is a uint8 RGB array (H, W, 3) with at least one pixel."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return
        got = f"{image.dtype} {image.shape}"
    else:
        got = type(image).__name__
    raise ImageError(ImageReason.BAD_PIXELS, got, "a path, bytes or uint8 RGB (H, W, 3)")
