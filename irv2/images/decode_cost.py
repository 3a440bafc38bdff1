"""What decoding an image costs beyond its pixels, told or bounded before it is decoded.

A progressive JPEG may name any number of scans, each of which costs a pass over the whole image in
memory: 100 kB of them keep a decoder busy for hours (ITU-T T.81, annexes B and G). And Pillow walks
over segments, chunks, blocks and strips in Python, with the interpreter lock held, and decodes a
few rare kinds of pixels there too: 0.3 to 1.3 s for 1 MB of the smallest ones (2026-11-25), while a
whole server waits.
"""

import io
import re
import struct

from PIL.JpegImagePlugin import JpegImageFile

from irv2.errors import ImageError, ImageReason

# Files have some dozens. Each costs a step in Python, here and in Pillow.
MAX_SEGMENTS = 2000

_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # frames; the others are progressive or not decoded
_END, _SCAN = 0xD9, 0xDA
# 0xFF that begins a marker with a length. Stuffed zeros, fill bytes, TEM, restarts and SOI have
# none; in the compressed data of a scan only such occur.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")

MAX_READS = 4000  # and one more for so many bytes of the file:
BYTES_PER_READ = 64  # 8 kB are usual in PNG, 255 bytes the largest block in GIF
MAX_PLAIN_BYTES = 2**18  # PPM in decimal digits

_WAY_OUT = "save it as PNG with usual settings, or as JPEG"


def num_scans(encoded: bytes, most: int) -> int:
    """Scans up to the end of the image, at most `most` + 1; 1 at once where the first is all.

    Raises ImageError (UNSUPPORTED) where those are not found within MAX_SEGMENTS segments.
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
                return scans  # the decoder reads no further, or is not to
        at = marker.end() + int.from_bytes(segment[:2], "big")
    raise ImageError(
        ImageReason.UNSUPPORTED,
        f"more than {MAX_SEGMENTS} marker segments",
        "fewer",
        "save it again without its metadata",
    )


class PiecewiseFile(io.BytesIO):
    """An image file that is read in a bounded number of pieces.

    A read too many raises ImageError (UNSUPPORTED). The pixels of run-length BMP, and of PPM whose
    values don't end at 255 or 65535, are read one by one: few are enough.
    """

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._num_left = _max_pieces(encoded)

    def read(self, size: int | None = -1, /) -> bytes:
        """As BytesIO's."""
        self._num_left -= 1
        if self._num_left < 0:
            got = "a file of very many small pieces, or in a format for few pixels"
            raise ImageError(ImageReason.UNSUPPORTED, got, way_out=_WAY_OUT)
        return super().read(size)


class JpegFile(JpegImageFile):
    """Without Pillow's look for the resolution, which reads tens of thousands of EXIF entries."""

    def _read_dpi_from_exif(self) -> None:
        pass


def refuse_slow(encoded: bytes) -> None:
    """Raise ImageError (UNSUPPORTED) for what would be slow whatever the number of pieces read."""
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
    """Of a TIFF's first image, by its directory; 0 where that is damaged (Pillow says how)."""
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
    return max(
        (
            num
            for tag, _, num in struct.iter_unpack(order + entry, entries[:whole])
            if tag in (273, 324)
        ),  # StripOffsets, TileOffsets
        default=0,
    )
