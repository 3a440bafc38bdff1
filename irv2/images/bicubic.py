"""Torch7's bicubic on uint8 RGB: four taps along each row, then four down each column.

Source: torch/image, generic/image.c, scaleBicubic. The taps are applied by the compiled kernel
(_bicubic.c) if it was built at install, else by NumPy, with identical results to the byte.
"""

import ctypes
import importlib.util
import logging
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from irv2.types import FloatArray, IntArray, UInt8Array

logger = logging.getLogger(__name__)


class Taps(NamedTuple):
    """The four neighbouring source pixels of each of n outputs along a line.

    Pixels beyond an edge have weight 0.
    """

    second: IntArray  # (n,), ascending: source index of the second of the four
    weights: FloatArray  # (4, n)


Kernel = Callable[[UInt8Array, Taps, Taps, UInt8Array], None]


def interpolate(image_hwc: UInt8Array, rows: Taps, columns: Taps, out: UInt8Array) -> None:
    """Resample uint8 RGB (H, W, 3) at `rows` and `columns` into `out`, uint8 (rows, columns, 3).

    The original keeps floats; here the result is rounded (half to even) and clipped once, at the
    end: a few pixels of photographs overshoot 0..255. Only the source pixels needed are read.
    """
    kernel()(image_hwc, rows, columns, out)


# Chosen at the first call, when logging is set up.
@cache
def kernel() -> Kernel:
    """Return the compiled kernel, or NumPy's if no compiler was found at install."""
    built = importlib.util.find_spec("irv2.images._bicubic")
    chosen = load_kernel(built.origin) if built and built.origin else numpy_kernel
    logger.debug("torch7-bicubic: %s", chosen.__name__)
    return chosen


# Crops come in a few hundred sizes, whole images in fewer. A table takes 40 us and 7 kB.
@lru_cache(maxsize=1024)
def taps(src_len: int, dst_len: int, start: int, count: int) -> Taps:
    """Return the taps of `count` outputs from `start` on, when `src_len` pixels become `dst_len`.

    Positions are computed in float32, as in the original. Taps beyond an edge are extrapolated
    linearly (p0 = 2 p1 - p2), which is folded into the weights.
    """
    scale = np.float32(src_len - 1) / np.float32(max(dst_len - 1, 1))
    position = np.arange(start, start + count, dtype=np.float32) * scale
    position[np.arange(start, start + count) == dst_len - 1] = src_len - 1
    base = np.minimum(position.astype(np.int64), max(src_len - 2, 0))
    t = position - base.astype(np.float32)
    t2 = t * t  # products: powers differ between machines in their last bit
    t3 = t2 * t
    half = np.float32(0.5)
    weights = np.stack(
        [
            -half * t + t2 - half * t3,
            1 - 5 * half * t2 + 3 * half * t3,
            half * t + 2 * t2 - 3 * half * t3,
            -half * t2 + half * t3,
        ]
    )
    before, after = base == 0, base + 2 >= src_len
    weights[1, before] += 2 * weights[0, before]
    weights[2, before] -= weights[0, before]
    weights[0, before] = 0
    weights[2, after] += 2 * weights[3, after]
    weights[1, after] -= weights[3, after]
    weights[3, after] = 0
    return Taps(base, weights)


def numpy_kernel(image_hwc: UInt8Array, rows: Taps, columns: Taps, out: UInt8Array) -> None:
    """Do what `interpolate` does, in NumPy."""
    row_indices = _indices(rows, image_hwc.shape[0])
    first, last = row_indices.min(), row_indices.max() + 1
    source = image_hwc[first:last].astype(np.float32)
    wide = _sum_of_taps(
        [source[:, column] for column in _indices(columns, image_hwc.shape[1])],
        columns.weights[:, None, :, None],
    )
    tall = _sum_of_taps([wide[row - first] for row in row_indices], rows.weights[:, :, None, None])
    out[...] = np.clip(np.rint(tall), 0, 255)


def _indices(taps: Taps, src_len: int) -> IntArray:
    indices: IntArray = np.clip(taps.second + np.arange(-1, 3)[:, None], 0, src_len - 1)
    return indices


def _sum_of_taps(values: list[FloatArray], weights: FloatArray) -> FloatArray:
    total: FloatArray = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total += value * weight
    return total


def load_kernel(library: str) -> Kernel:
    """Load the kernel from the library that _bicubic.c was built into."""
    function = ctypes.CDLL(library).irv2_bicubic  # calls through CDLL release Python's lock
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    image, line = (pointer, size, size, size), (pointer, pointer, size)
    function.argtypes = [*image, *line, *line, pointer, pointer]
    function.restype = None

    def compiled_kernel(image_hwc: UInt8Array, rows: Taps, columns: Taps, out: UInt8Array) -> None:
        if image_hwc.strides[1:] != (3, 1):
            image_hwc = np.ascontiguousarray(image_hwc)
        src_height, src_width, _ = image_hwc.shape
        height, width, _ = out.shape
        assert out.flags.c_contiguous
        scratch = np.empty(3 * (src_width + 3) + 1 + 4 * (3 * width + 1), np.float32)
        function(
            image_hwc.ctypes.data,
            image_hwc.strides[0],
            src_height,
            src_width,
            rows.second.ctypes.data,
            rows.weights.ctypes.data,
            height,
            columns.second.ctypes.data,
            columns.weights.ctypes.data,
            width,
            scratch.ctypes.data,
            out.ctypes.data,
        )

    return compiled_kernel
