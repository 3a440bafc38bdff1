"""EXIF's orientation in every format that carries one, against Pillow."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from irv2.images.decode import decode
from irv2.images.orientation import exif_orientation

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
FORMATS = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "big tiff": ("TIFF", {"big_tiff": True}),
}


def encode(kind: str, value: int | None) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera's maker"
    if value is not None:
        exif[0x0112] = value
    fmt, options = FORMATS[kind]
    file = io.BytesIO()
    IMAGE.save(file, fmt, exif=exif, **options)
    return file.getvalue()


def in_jpeg(exif: bytes) -> bytes:
    whole = encode("jpeg", None)
    return (
        whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + whole[2:]
    )


def exif(order: str, kind: int, value: bytes) -> bytes:
    magic = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}IHHHI", 8, 1, 274, kind, 1) + value.ljust(4, b"\0")
    return magic + entry + bytes(4)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_turned_as_pillow_turns_it(kind, value):
    encoded, plain = encode(kind, value), encode(kind, None)
    assert exif_orientation(encoded) == value
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    turned = decode(encoded, orientation="exif")
    np.testing.assert_array_equal(turned, np.asarray(upright))
    assert turned.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(decode(encoded), decode(plain))


# libtiff writes no invalid value.
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "tiff lzw"])
@pytest.mark.parametrize("value", [None, 0, 9])
def test_a_picture_that_says_nothing_valid_is_upright(kind, value):
    assert exif_orientation(encode(kind, value)) == 1
    np.testing.assert_array_equal(
        decode(encode(kind, value), orientation="exif"), decode(encode(kind, None))
    )


def test_a_png_may_say_it_after_its_pixels():
    encoded = encode("png", 6)
    at = encoded.index(b"eXIf") - 4
    end = at + 12 + struct.unpack_from(">I", encoded, at)[0]
    moved = encoded[:at] + encoded[end:-12] + encoded[at:end] + encoded[-12:]
    assert exif_orientation(moved) == 6


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (exif("<", 3, b"\x06\0"), 6),
        (exif(">", 3, b"\0\x06"), 6),
        (exif("<", 4, b"\x06\0\0\0"), 6),
        (exif(">", 1, b"\x06"), 6),
        (exif("<", 2, b"6"), 1),  # a text
        (exif("<", 3, b"\x06\0")[:-10], 1),  # cut off
        (b"", 1),
        (b"nonsense that is no TIFF", 1),
    ],
)
def test_a_tag_of_any_number_counts_and_damage_is_upright(data, expected):
    assert exif_orientation(in_jpeg(data)) == expected


@pytest.mark.parametrize(
    "encoded", [b"", b"BM", b"GIF89a", b"P6 1 1 255\nabc", b"RIFF\0\0\0\0WEBP"]
)
def test_other_files_are_upright(encoded):
    assert exif_orientation(encoded) == 1
