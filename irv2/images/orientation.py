"""EXIF orientation: how a picture is to be turned to be upright, which cameras note in the file.

Phones store a photograph as the sensor lay. Reading the note takes some microseconds
(docs/pictures.md), no library.
"""

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import cv2

from irv2.images.containers import (
    JPEG_MAGIC,
    PNG_MAGIC,
    TIFF_MAGIC,
    jpeg_segments,
    png_chunks,
    tiff_tags,
    webp_chunks,
)
from irv2.types import UInt8Array

Orientation = Literal["stored", "exif"]  # pixels as they are stored, or turned as EXIF says
ORIENTATIONS: tuple[Orientation, ...] = ("stored", "exif")

_TAG = 274
_VALUE_BYTES = {1: 1, 3: 2, 4: 4}  # of BYTE, SHORT and LONG
_EXIF = 0xE1  # of JPEG's segments, one of those for applications
_COMMENT, _APPLICATIONS = 0xFE, range(0xE0, 0xF0)
_PREFIX = b"Exif\0\0"
_TURNS: dict[int, Callable[[UInt8Array], Any]] = {
    2: partial(cv2.flip, flipCode=1),
    3: partial(cv2.rotate, rotateCode=cv2.ROTATE_180),
    4: partial(cv2.flip, flipCode=0),
    5: cv2.transpose,
    6: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),
    7: lambda image_hwc: cv2.transpose(cv2.rotate(image_hwc, cv2.ROTATE_180)),
    8: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def exif_orientation(encoded: bytes) -> int:
    """Return 1 to 8 as a JPEG, PNG, WebP or TIFF says; 1, upright, if it says nothing valid."""
    exif = _exif(encoded)
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    for tag, kind, _, at in tiff_tags(exif):
        if tag == _TAG:
            value = int.from_bytes(exif[at : at + _VALUE_BYTES.get(kind, 0)], order)
            return value if value in range(1, 9) else 1
    return 1


def turned(image_hwc: UInt8Array, orientation: int) -> UInt8Array:
    """Turn uint8 (H, W, 3) upright."""
    upright: UInt8Array = _TURNS[orientation](image_hwc) if orientation > 1 else image_hwc
    return upright


def as_stored(tiff: bytes) -> bytes:
    """Return a TIFF that says it is upright; Pillow would turn it while it decodes."""
    found = [at for tag, _, _, at in tiff_tags(tiff) if tag == _TAG]
    if not found:
        return tiff
    order, is_big = "<" if tiff.startswith(b"II") else ">", 43 in tiff[2:4]
    entry, before = ("HQHHI", 10) if is_big else ("HIHH", 6)
    changed = bytearray(tiff)
    for at in found:  # kind SHORT, one value, 1
        padding = [0] * (len(entry) - 3)
        struct.pack_into(order + entry, changed, at - before, 3, 1, 1, *padding)
    return bytes(changed)


def _exif(encoded: bytes) -> bytes:
    """Return the EXIF data, a TIFF without pixels; empty if there is none."""
    if encoded.startswith(JPEG_MAGIC):
        for kind, start, end in jpeg_segments(encoded):
            if kind != _COMMENT and kind not in _APPLICATIONS:
                break  # EXIF stands before all that the decoder needs
            if kind == _EXIF and encoded.startswith(_PREFIX, start):
                return encoded[start + len(_PREFIX) : end]
    elif encoded.startswith(TIFF_MAGIC):
        return encoded
    else:
        is_png = encoded.startswith(PNG_MAGIC)
        is_webp = encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP"
        chunks = png_chunks(encoded) if is_png else webp_chunks(encoded) if is_webp else ()
        for kind, start, end in chunks:
            if kind in (b"eXIf", b"EXIF"):
                return encoded[start:end].removeprefix(_PREFIX)
    return b""
