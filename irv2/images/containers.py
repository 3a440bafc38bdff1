"""What image files hold around their pixels: segments of JPEG, chunks of PNG, a TIFF's directory.

Each piece costs a step in Python, here and in Pillow, so the number of steps is bounded.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from irv2.errors import ImageError, ImageReason

JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF

# Ordinary JPEGs have a few dozen segments.
MAX_SEGMENTS = 2000
_END = 0xD9
# 0xFF at the start of a marker with a length. Stuffed zeros, fill bytes, TEM, restarts and SOI have
# none, and only these occur in the compressed data of a scan.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")

MAX_READS = 4000  # plus one for every BYTES_PER_READ bytes of the file
BYTES_PER_READ = 64  # PNG usually has 8 kB per chunk, GIF at most 255 bytes per block

_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


class Part(NamedTuple):
    """A segment or chunk with its contents from `start` to `end`, which may lie behind the file."""

    kind: int | bytes
    start: int
    end: int


class Tag(NamedTuple):
    """An entry of a TIFF's directory, whose value or its position is at `at`."""

    tag: int
    kind: int
    num: int  # of values
    at: int


def max_pieces(encoded: bytes) -> int:
    """Return how many pieces a file of this size may have."""
    return MAX_READS + len(encoded) // BYTES_PER_READ


def too_many_pieces() -> ImageError:
    """Return the refusal of a file that has more."""
    got = "too many small pieces, or a format meant for few pixels"
    way_out = "save it as PNG with usual settings, or as JPEG"
    return ImageError(ImageReason.UNSUPPORTED, got, way_out=way_out)


def jpeg_segments(encoded: bytes) -> Iterator[Part]:
    """Yield a JPEG's segments up to its end, each with the second byte of its marker.

    Raises ImageError (UNSUPPORTED) if they don't end within MAX_SEGMENTS segments.
    """
    at = 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(encoded, at)
        if marker is None or marker[0][1] == _END:
            return
        start = marker.end() + 2
        at = marker.end() + int.from_bytes(encoded[marker.end() : start], "big")
        yield Part(marker[0][1], start, at)
    raise ImageError(
        ImageReason.UNSUPPORTED,
        f"more than {MAX_SEGMENTS} marker segments",
        "fewer",
        "save it again without its metadata",
    )


def png_chunks(encoded: bytes) -> Iterator[Part]:
    """Yield a PNG's chunks; raises ImageError (UNSUPPORTED) if there are too many."""
    at = len(PNG_MAGIC)
    for _ in range(max_pieces(encoded)):
        if at + 8 > len(encoded):
            return
        length, kind = struct.unpack_from(">I4s", encoded, at)
        yield Part(kind, at + 8, at + 8 + length)
        at += 12 + length
    raise too_many_pieces()


def without_metadata(encoded: bytes) -> bytes:
    """Return a PNG without the chunks that don't change its pixels, whatever is wrong with them.

    Pillow would refuse an image for a wrong checksum of a comment, or a megabyte of profile. A
    chunk that the file ends in is kept, so that it is found to be cut off.
    """
    return PNG_MAGIC + b"".join(
        encoded[start - 8 : end + 4]
        for kind, start, end in png_chunks(encoded)
        if kind in _PIXEL_CHUNKS or end + 4 > len(encoded)
    )


def webp_chunks(encoded: bytes) -> Iterator[Part]:
    """Yield the first chunks of a WebP; an image has up to eight kinds."""
    at = 12
    for _ in range(16):
        if at + 8 > len(encoded):
            return
        kind, length = struct.unpack_from("<4sI", encoded, at)
        yield Part(kind, at + 8, at + 8 + length)
        at += 8 + length + length % 2


def tiff_tags(tiff: bytes) -> Iterator[Tag]:
    """Yield the entries of a TIFF's first directory; none if that is damaged."""
    order = "<" if tiff.startswith(b"II") else ">"
    is_big = 43 in tiff[2:4]  # BigTIFF
    offset, count, entry = ("8xQ", "Q", "HHQ8x") if is_big else ("4xI", "H", "HHI4x")
    try:
        (at,) = struct.unpack_from(order + offset, tiff)
        (num_entries,) = struct.unpack_from(order + count, tiff, at)
    except struct.error:
        return
    first, size = at + struct.calcsize(count), struct.calcsize(order + entry)
    entries = tiff[first : first + min(num_entries, 65_535) * size]
    values = range(first + size - (8 if is_big else 4), len(tiff), size)
    whole = len(entries) // size * size
    for (tag, kind, num), value in zip(
        struct.iter_unpack(order + entry, entries[:whole]), values, strict=False
    ):
        yield Tag(tag, kind, num, value)
