"""Names for the arrays that travel between modules."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
ImageSource = str | Path | bytes | UInt8Array  # a file, encoded bytes, or RGB (H, W, 3)
