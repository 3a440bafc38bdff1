"""Named arrays to bytes and back (.npz): for ledgers, self-tests and the user's cache."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from irv2.system.stop import raise_if_stopped


def bytes_from_arrays(*, compress: bool = True, **arrays: ArrayLike) -> bytes:
    """Return the contents of an .npz file."""
    buffer = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    save(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_arrays(source: Path | bytes, *names: str) -> list[NDArray[Any]]:
    """Load the arrays of these names from a file or its contents.

    Raises ValueError if it is damaged or lacks one.
    """
    try:
        # Opened here, since numpy does not close a file that is no archive.
        opened = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
        with opened as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except Exception as error:  # for flipped bytes zipfile, zlib and numpy raise anything
        raise_if_stopped()
        raise ValueError(str(error) or type(error).__name__) from error
