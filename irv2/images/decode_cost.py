"""Costs of decoding an image beyond its pixels, estimated or bounded before decoding.

A progressive JPEG may have any number of scans, each of which costs a pass over the whole image in
memory: 100 kB of them keep a decoder busy for hours (ITU-T T.81, annexes B and G). And Pillow walks
over segments, chunks, blocks and strips in Python, holding the interpreter lock, and decodes a few
rare kinds of pixels there too: 0.3 to 1.3 s for 1 MB of the smallest ones (2026-11-25), while the
whole server waits.
"""

import io

from PIL.JpegImagePlugin import JpegImageFile

from irv2.errors import ImageError, ImageReason
from irv2.images.containers import jpeg_segments, max_pieces, tiff_tags, too_many_pieces

_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # frame types; all others are progressive or not decoded
_SCAN = 0xDA

MAX_PLAIN_BYTES = 2**18  # of PPM in decimal digits
_STRIPS, _TILES = 273, 324  # tags of TIFF

_WAY_OUT = "save it as PNG with usual settings, or as JPEG"


def num_scans(encoded: bytes, most: int) -> int:
    """Count the scans of a JPEG, up to `most` + 1; stop at 1 if the first holds all components.

    Raises ImageError (UNSUPPORTED) if they don't end within MAX_SEGMENTS segments.
    """
    scans = components = 0
    for kind, start, _ in jpeg_segments(encoded):
        if kind in _SEQUENTIAL and start + 6 <= len(encoded):
            components = encoded[start + 5]
        if kind == _SCAN:
            scans += 1
            is_whole = components and encoded[start : start + 1] == bytes([components])
            if is_whole or scans > most:  # not progressive, or already too many
                return scans  # the decoder reads no further, or must not
    return scans


class PiecewiseFile(io.BytesIO):
    """An image file that may be read only in a bounded number of pieces.

    One read too many raises ImageError (UNSUPPORTED). Pillow reads the pixels of run-length BMP
    one by one, so some thousands exceed it.
    """

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._num_left = max_pieces(encoded)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like BytesIO, but count the call."""
        self._num_left -= 1
        if self._num_left < 0:
            raise too_many_pieces()
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
        counts = [tag.num for tag in tiff_tags(encoded) if tag.tag in (_STRIPS, _TILES)]
        found, most = max(counts, default=0), max_pieces(encoded)
        if found > most:
            got, expected = f"a TIFF of {found} strips or tiles", f"at most {most}"
            raise ImageError(ImageReason.UNSUPPORTED, got, expected, _WAY_OUT)
