"""Files made to keep a parser busy cost no more than photographs of their size."""

import io
import struct
import time
import zlib
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from irv2.errors import ImageError, ImageReason
from irv2.images.decode import decode

NUM_BYTES = 3_000_000
MAX_S = 0.4  # of processor time; 0.5 to 4 s where every piece is walked over, under 0.1 s now
NOISE = np.random.default_rng(0).integers(0, 256, (100, 90, 3), np.uint8)
JPEG = simplejpeg.encode_jpeg(NOISE)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg_with(pieces: bytes, jpeg: bytes = JPEG) -> bytes:
    return jpeg[:2] + pieces * (NUM_BYTES // len(pieces)) + jpeg[2:]


def exif_of_many_entries() -> bytes:
    """In as many segments as it needs; the entries are of a kind that is skipped."""
    entries = b"".join(struct.pack("<HHII", i % 65536, 1, 60_000, 0) for i in range(60_000))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + entries
    parts = [b"Exif\0\0" + exif[at : at + 60_000] for at in range(0, len(exif), 60_000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)


def png_with(kind: bytes, data: bytes = b"") -> bytes:
    png = encode(Image.fromarray(NOISE), "PNG")
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk * (NUM_BYTES // len(chunk)) + png[33:]


def gif_with(start: bytes, pieces: bytes, end: bytes = b"") -> bytes:
    gif = encode(Image.fromarray(NOISE).convert("P"), "GIF")
    header = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    return gif[:header] + start + pieces * (NUM_BYTES // len(pieces)) + end + gif[header:]


def tiff_of_strips(num_strips: int) -> bytes:
    """One row each, all of them the same eight bytes."""
    at = 10 + 8 * 12 + 4
    entries = [(256, 8), (257, num_strips), (258, 8), (259, 1), (262, 1), (278, 1)]
    directory = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries]
    directory.insert(5, struct.pack("<HHII", 273, 4, num_strips, at))
    directory.append(struct.pack("<HHII", 279, 4, num_strips, at + 4 * num_strips))
    header = b"II*\0" + struct.pack("<IH", 8, 8)
    return (
        header
        + b"".join(directory)
        + bytes(4)
        + struct.pack("<I", 0) * num_strips
        + struct.pack("<I", 8) * num_strips
    )


def bmp_of_runs() -> bytes:
    size = struct.pack("<IiiHHIIiiII", 40, 1000, 6000, 1, 8, 1, 0, 0, 0, 256, 0)
    header = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + size + bytes(1024)
    return header + b"\x01\x05" * (NUM_BYTES // 2)


CMYK = encode(Image.fromarray(NOISE).convert("CMYK"), "JPEG")
CORPUS = {
    "jpeg of empty segments": jpeg_with(b"\xff\xe0\0\0"),
    "jpeg of segments": jpeg_with(b"\xff\xe0\0\2"),
    "jpeg of fill bytes, broken": b"\xff\xd8" + b"\xff" * NUM_BYTES,
    "jpeg of stuffed zeros": jpeg_with(b"\xff\0"),
    "cmyk jpeg of restarts": jpeg_with(b"\xff\xd0", CMYK),
    "png of unknown chunks": png_with(b"abCd"),
    "png of texts": png_with(b"tEXt", b"a\0b"),
    "png of empty data": png_with(b"IDAT"),
    "gif of a comment in bytes": gif_with(b"\x21\xfe", b"\x01a", b"\0"),
    "gif of extensions": gif_with(b"", b"\x21\xfe\0"),
    "gif of nothing": gif_with(b"", b"\0"),
    "bmp of runs": bmp_of_runs(),
    "plain ppm": b"P3 1000 500 255\n" + b"1 " * (NUM_BYTES // 2),
    "ppm to 254": b"P6 1000 1000 254\n" + bytes(NUM_BYTES),
    "ppm of spaces": b"P6 " + b" " * NUM_BYTES,
    "tiff of strips": tiff_of_strips(NUM_BYTES // 8),
    "big-endian tiff of strips": b"MM\0*"
    + struct.pack(">IH", 8, 1)
    + struct.pack(">HHII", 324, 4, 10**6, 8)
    + bytes(NUM_BYTES),
}


@pytest.mark.parametrize("encoded", CORPUS.values(), ids=CORPUS)
def test_a_file_of_very_many_pieces_costs_next_to_nothing(encoded):
    started_at = time.thread_time()
    with suppress(ImageError):
        decode(encoded)
    assert time.thread_time() - started_at < MAX_S


def test_exif_entries_are_not_read():
    encoded = CMYK[:2] + exif_of_many_entries() + CMYK[2:]
    started_at = time.thread_time()
    assert decode(encoded).size
    assert time.thread_time() - started_at < 0.05  # 0.17 s where they are


@pytest.mark.parametrize(
    "encoded",
    [
        encode(Image.fromarray(np.tile(NOISE, (8, 8, 1))), "TIFF", strip_size=1000),
        encode(Image.fromarray(np.tile(NOISE, (8, 8, 1))), "PNG", compress_level=1),
        encode(Image.fromarray(NOISE).convert("P"), "GIF", comment=b"long " * 10_000),
        b"P2 50 40 255\n" + b"200 " * 2000,
        b"P5 50 40 4095\n" + bytes(4000),
        tiff_of_strips(3000),
    ],
)
def test_usual_numbers_of_pieces_are_read(encoded):
    assert decode(encoded).size


def test_what_takes_too_many_reads_says_what_to_do():
    with pytest.raises(ImageError, match=r"too many small pieces.*save it as PNG") as refused:
        decode(CORPUS["png of unknown chunks"])
    assert refused.value.reason is ImageReason.UNSUPPORTED
