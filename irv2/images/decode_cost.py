"""Costs of decoding an image beyond its pixels, estimated or bounded before decoding.

A progressive JPEG may have any number of scans, each of which costs a pass over the whole image in
memory: 100 kB of them keep a decoder busy for hours (ITU-T T.81, annexes B and G). And Pillow walks
over segments, chunks, blocks and strips in Python, holding the interpreter lock, and decodes a few
rare kinds of pixels there too: 0.3 to 1.3 s for 1 MB of the smallest ones (2026-11-25), while the
whole server waits.
"""

import io
import re
import struct

from PIL.JpegImagePlugin import JpegImageFile

from irv2.errors import ImageError, ImageReason

# Ordinary files have a few dozen. Each costs a step in Python, here and in Pillow.
MAX_SEGMENTS = 2000

_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # frame types; all others are progressive or not decoded
_END, _SCAN = 0xD9, 0xDA
# 0xFF at the start of a marker with a length. Stuffed zeros, fill bytes, TEM, restarts and SOI have
# none, and only these occur in the compressed data of a scan.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")

MAX_READS = 4000  # plus one for every BYTES_PER_READ bytes of the file
BYTES_PER_READ = 64  # PNG usually has 8 kB per chunk, GIF at most 255 bytes per block
MAX_PLAIN_BYTES = 2**18  # of PPM in decimal digits

_WAY_OUT = "save it as PNG with usual settings, or as JPEG"


def num_scans(encoded: bytes, most: int) -> int:
    """Count the scans of a JPEG, up to `most` + 1; stop at 1 if the first holds all components.

    Raises ImageError (UNSUPPORTED) if they don't end within MAX_SEGMENTS segments.
    """
    scans = components = at = 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(encoded, at)
        if marker is None or marker[0][1] == _END:
            return scans
        kind, segment = marker[0][1], encoded[marker.end() : marker.end() + 8]
        if kind in _SEQUENTIAL and len(segment) == 8:
            components = segment[7]
        if kind == _SCAN:
            scans += 1
            is_whole = components and segment[2:3] == bytes([components])  # not progressive
            if is_whole or scans > most:
                return scans  # the decoder reads no further, or must not
        at = marker.end() + int.from_bytes(segment[:2], "big")
    raise ImageError(
        ImageReason.UNSUPPORTED,
        f"more than {MAX_SEGMENTS} marker segments",
        "fewer",
        "save it again without its metadata",
    )


class PiecewiseFile(io.BytesIO):
    """An image file that may be read only in a bounded number of pieces.

    One read too many raises ImageError (UNSUPPORTED). Pillow reads the pixels of run-length BMP,
    and of PPM with a maximum other than 255 or 65535, one by one, so some thousands exceed it.
    """

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._num_left = _max_pieces(encoded)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like BytesIO, but count the call."""
        self._num_left -= 1
        if self._num_left < 0:
            got = "too many small pieces, or a format meant for few pixels"
            raise ImageError(ImageReason.UNSUPPORTED, got, way_out=_WAY_OUT)
        return super().read(size)


class JpegFile(JpegImageFile):
    """Pillow's JPEG without its search for the resolution through any number of EXIF entries."""

    def _read_dpi_from_exif(self) -> None:
        pass


def refuse_slow(encoded: bytes) -> None:
    """Raise ImageError (UNSUPPORTED) for files that are slow however few pieces are read."""
    if encoded[:2] in (b"P1", b"P2", b"P3") and len(encoded) > MAX_PLAIN_BYTES:
        got, expected = f"{len(encoded)} bytes of plain PPM", f"at most {MAX_PLAIN_BYTES}"
        raise ImageError(ImageReason.UNSUPPORTED, got, expected, _WAY_OUT)
    if encoded[:2] in (b"II", b"MM"):
        found, most = _num_strips(encoded), _max_pieces(encoded)
        if found > most:
            got, expected = f"a TIFF of {found} strips or tiles", f"at most {most}"
            raise ImageError(ImageReason.UNSUPPORTED, got, expected, _WAY_OUT)


def _max_pieces(encoded: bytes) -> int:
    return MAX_READS + len(encoded) // BYTES_PER_READ


def _num_strips(encoded: bytes) -> int:
    """Count the strips or tiles of a TIFF's first image; 0 if the directory is damaged."""
    order = "<" if encoded.startswith(b"II") else ">"
    is_big = 43 in encoded[2:4]  # BigTIFF
    offset, count, entry = ("8xQ", "Q", "HHQ8x") if is_big else ("4xI", "H", "HHI4x")
    try:
        (at,) = struct.unpack_from(order + offset, encoded)
        (num_entries,) = struct.unpack_from(order + count, encoded, at)
    except struct.error:
        return 0
    first, size = at + struct.calcsize(count), struct.calcsize(order + entry)
    entries = encoded[first : first + min(num_entries, 65_535) * size]
    whole = len(entries) // size * size
    found = struct.iter_unpack(order + entry, entries[:whole])
    return max((num for tag, _, num in found if tag in (273, 324)), default=0)  # strips, tiles
