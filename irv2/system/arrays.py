"""Named arrays as bytes and back (.npz): ledgers, self-tests, what the user's cache keeps."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bytes_from_arrays(**arrays: ArrayLike) -> bytes:
    """The contents of an .npz file, compressed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of these names. Raises ValueError where the file is damaged or lacks one."""
    try:
        # Opened here, since numpy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # on flipped bytes zipfile, zlib and numpy raise anything
        raise ValueError(str(error) or type(error).__name__) from error
