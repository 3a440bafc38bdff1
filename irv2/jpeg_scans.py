"""How many passes over its pixels a JPEG asks for, read from its markers without decoding.

A progressive file may name any number of scans, each of which costs a pass over the whole image
in memory: 100 kB of them keep a decoder busy for hours (ITU-T T.81, annexes B and G).
"""

import re

_SEQUENTIAL = (0xC0, 0xC1, 0xC9)  # frames; the others are progressive or not decoded
_END, _SCAN = 0xD9, 0xDA
# 0xFF that begins a marker with a length. Stuffed zeros, fill bytes, TEM, restarts and SOI have
# none; in the compressed data of a scan only such occur.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")


def num_scans(encoded: bytes) -> int:
    """Scans up to the end of the image; 1 at once where the first one holds everything."""
    scans = components = at = 0
    while marker := _MARKER.search(encoded, at):
        kind, segment = marker[0][1], encoded[marker.end() : marker.end() + 8]
        if kind == _END:
            break
        if kind in _SEQUENTIAL and len(segment) == 8:
            components = segment[7]
        if kind == _SCAN:
            scans += 1
            if components and segment[2:3] == bytes([components]):
                break  # not progressive, all components: the decoder reads no further
        at = marker.end() + int.from_bytes(segment[:2], "big")
    return scans
