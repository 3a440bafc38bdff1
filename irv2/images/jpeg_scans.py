"""How many passes over its pixels a JPEG asks for, read from its markers without decoding.

A progressive file may name any number of scans, each of which costs a pass over the whole image
in memory: 100 kB of them keep a decoder busy for hours (ITU-T T.81, annexes B and G).
"""

import re

from irv2.errors import ImageError, ImageReason

# Files have some dozens. Each costs a step in Python, here and in Pillow.
MAX_SEGMENTS = 2000

_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # frames; the others are progressive or not decoded
_END, _SCAN = 0xD9, 0xDA
# 0xFF that begins a marker with a length. Stuffed zeros, fill bytes, TEM, restarts and SOI have
# none; in the compressed data of a scan only such occur.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")


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
