"""Synthetic photographs, the same every time, for benchmarks and their tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from irv2.types import UInt8Array

HEIGHT, WIDTH = 375, 500  # the most frequent size in ImageNet


def photograph(seed: int) -> UInt8Array:
    """Make uint8 RGB (HEIGHT, WIDTH, 3): noise with a photograph's spectrum and weak colours."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = np.inf  # no constant component
    phases = np.exp(2j * np.pi * rng.random((3, *frequency.shape)))
    grey, red, blue = np.fft.irfft2(phases / frequency**1.5, (HEIGHT, WIDTH))
    rgb = np.stack([grey + 0.2 * red, grey - 0.1 * (red + blue), grey + 0.2 * blue], axis=2)
    pixels: UInt8Array = np.clip(120 + 55 * rgb / grey.std(), 0, 255).astype(np.uint8)
    return pixels


def jpeg(seed: int, quality: int) -> bytes:
    """Encode `photograph` as JPEG: 41 kB at quality 85, 53 kB at 90, ImageNet's 110 kB at 97."""
    file = io.BytesIO()
    Image.fromarray(photograph(seed)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_photos(folder: Path, count: int, quality: int) -> int:
    """Write `count` JPEGs into the new folder `folder` and return their total size in bytes."""
    folder.mkdir(parents=True)
    return sum((folder / f"{i}.jpg").write_bytes(jpeg(i, quality)) for i in range(count))
