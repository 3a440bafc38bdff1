"""The decoder on every format it reads, and on what it must refuse, with the reason."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import HEIGHT, WIDTH, png_chunk, save
from PIL import Image, ImageCms

from irv2.errors import ImageError, ImageReason
from irv2.images.decode import ImageLimits, decode, looks_like_image


def photo() -> np.ndarray:
    """Smooth colours, so that lossy formats come back within a few grey levels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 7, y * 10, 255 - x * 4 - y * 3], axis=-1).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG file, up to where its pixels would follow."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def exif_orientation(value: int) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(
        ">HHI", value, 0, 0
    )


def reason(encoded: bytes, **limits: int) -> ImageReason:
    with pytest.raises(ImageError) as caught:
        decode(encoded, ImageLimits(**limits))
    line = str(caught.value)
    assert line.startswith("image: ")
    assert "\n" not in line
    return caught.value.reason


LOSSLESS = {
    "png": save(photo(), "PNG"),
    "webp": save(photo(), "WEBP", lossless=True),
    "bmp": save(photo(), "BMP"),
    "tiff": save(photo(), "TIFF"),
    "tiff lzw": save(photo(), "TIFF", compression="tiff_lzw"),
    "big tiff": save(photo(), "TIFF", big_tiff=True),
    "ppm": save(photo(), "PPM"),
}
LOSSY = {
    "jpeg": save(photo(), "JPEG", quality=95),
    "jpeg 4:4:4": save(photo(), "JPEG", quality=95, subsampling=0),
    "progressive jpeg": save(photo(), "JPEG", quality=95, progressive=True),
    "webp": save(photo(), "WEBP", quality=95),
}
# Of every decoder's own code path one file, small, for damage.
WHOLE = {
    **LOSSLESS,
    **LOSSY,
    "grey jpeg": save(Image.fromarray(photo()).convert("L"), "JPEG"),
    "cmyk jpeg": save(Image.fromarray(photo()).convert("CMYK"), "JPEG"),
    "exif jpeg": save(photo(), "JPEG", exif=exif_orientation(6)),
    "palette png": save(Image.fromarray(photo()).quantize(16), "PNG", transparency=3),
    "gif": save(Image.fromarray(photo()).quantize(16), "GIF"),
    "plain ppm": b"P3 2 1 255\n1 2 3 4 5 6\n",
}


@pytest.mark.parametrize("encoded", LOSSLESS.values(), ids=LOSSLESS)
def test_lossless_formats_give_the_very_pixels(encoded):
    image = decode(encoded)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, photo())


@pytest.mark.parametrize("encoded", LOSSY.values(), ids=LOSSY)
def test_lossy_formats_give_nearly_the_pixels(encoded):
    image = decode(encoded)
    assert (image.shape, image.dtype) == (photo().shape, np.uint8)
    difference = np.abs(image.astype(int) - photo())
    # At quality 95; colour at half the resolution is what costs most, at the edges.
    assert difference.mean() < 4
    assert difference.max() < 40


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}]
)
def test_jpeg_pixels_are_the_reference_librarys(options):
    encoded = save(photo(), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    np.testing.assert_array_equal(decode(encoded), expected)


def test_grey_images_are_the_same_in_three_channels():
    grey = photo()[:, :, 0]
    for encoded in (save(grey, "PNG"), save(grey, "BMP"), save(grey, "TIFF")):
        np.testing.assert_array_equal(decode(encoded), np.repeat(grey[:, :, None], 3, axis=2))
    jpeg = decode(save(grey, "JPEG", quality=95))
    assert np.abs(jpeg.astype(int) - grey[:, :, None]).max() <= 4  # quality 95, no colour to lose
    assert (jpeg == jpeg[:, :, :1]).all()


def test_adobes_inverted_cmyk_becomes_the_colours_meant():
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    encoded = save(inks, "JPEG", quality=95)
    assert b"Adobe" in encoded
    # Pillow's conversion has no ink profile: full inks are pure; 95 is within 3 levels.
    assert np.abs(decode(encoded).astype(int) - [255, 0, 0]).max() <= 3


def test_exif_orientation_is_ignored_as_the_original_did():
    plain = save(photo(), "JPEG")
    rotated = save(photo(), "JPEG", exif=exif_orientation(6))
    assert Image.open(io.BytesIO(rotated)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(decode(rotated), decode(plain))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_exif_orientation_is_ignored_in_other_formats_too(kind, options):
    rotated = save(photo(), kind, exif=exif_orientation(6), **options)
    assert Image.open(io.BytesIO(rotated)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(decode(rotated), decode(save(photo(), kind, **options)))


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_tiff_is_not_turned_either_though_pillow_would(value, options):
    encoded = save(photo(), "TIFF", tiffinfo={0x0112: value}, **options)
    np.testing.assert_array_equal(decode(encoded), photo())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colour_profiles_are_ignored(kind):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profiled = save(photo(), kind, icc_profile=profile)
    assert Image.open(io.BytesIO(profiled)).info["icc_profile"] == profile
    np.testing.assert_array_equal(decode(profiled), decode(save(photo(), kind)))


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (3, 1), (200, 100, 0, 255))
    image.putpixel((1, 0), (200, 100, 0, 0))
    image.putpixel((2, 0), (200, 100, 0, 128))
    for encoded in (save(image, "PNG"), save(image, "WEBP", lossless=True, exact=True)):
        # 128 / 255 of the colour, the rest white: 200 -> 227.4, 100 -> 177.2, 0 -> 127
        assert decode(encoded)[0].tolist() == [[200, 100, 0], [255, 255, 255], [227, 177, 127]]


def test_transparent_palette_and_grey_lie_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for encoded in (
        save(palette, "PNG", transparency=1),
        save(palette, "PNG", transparency=b"\xff\x00"),
        save(palette, "GIF", transparency=1),
    ):
        assert decode(encoded)[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    grey = Image.new("LA", (2, 1), (90, 255))
    grey.putpixel((1, 0), (90, 0))
    assert decode(save(grey, "PNG"))[0].tolist() == [[90] * 3, [255] * 3]


def test_16_bit_grey_keeps_its_upper_byte_in_every_format():
    grey = np.array([[0x0000, 0x00FF, 0x1234, 0x8000, 0xFFFF]], np.uint16)
    expected = [[value >> 8] * 3 for value in grey[0].tolist()]
    pgm = b"P5 5 1 65535\n" + grey.astype(">u2").tobytes()
    big_endian = save(Image.frombytes("I;16B", (5, 1), grey.astype(">u2").tobytes()), "TIFF")
    for encoded in (save(grey, "PNG"), save(grey, "TIFF"), pgm, big_endian):
        assert decode(encoded)[0].tolist() == expected


def test_1_bit_images_are_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    for encoded in (
        save(image, "PNG"),
        save(image, "PPM"),
        save(image, "TIFF"),
        b"P1 2 1 1 0",
    ):
        assert decode(encoded)[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(fmt):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if fmt == "WEBP" else {}
    encoded = save(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert (decode(encoded) == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"", ImageReason.EMPTY),
        (b"just some text\n", ImageReason.NOT_AN_IMAGE),
        (bytes(1000), ImageReason.NOT_AN_IMAGE),
        (b"<!DOCTYPE html><html></html>", ImageReason.NOT_AN_IMAGE),
        (b"<?xml version='1.0'?><rss></rss>", ImageReason.NOT_AN_IMAGE),
        (
            b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
            ImageReason.UNSUPPORTED,
        ),
        (b"\xef\xbb\xbf  <svg/>", ImageReason.UNSUPPORTED),
        (b"%PDF-1.7\n", ImageReason.UNSUPPORTED),
        (b"8BPS\0\x01", ImageReason.UNSUPPORTED),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", ImageReason.UNSUPPORTED),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", ImageReason.UNSUPPORTED),
        (b"\0\0\0\x0cjP  \r\n\x87\n", ImageReason.UNSUPPORTED),
        (b"\xff\x0a\x11", ImageReason.UNSUPPORTED),
        (save(Image.new("F", (3, 3)), "TIFF"), ImageReason.UNSUPPORTED),
        (save(Image.new("I", (3, 3)), "TIFF"), ImageReason.UNSUPPORTED),
        (b"\xff\xd8\xff", ImageReason.TRUNCATED),
        (b"\x89PNG\r\n\x1a\n", ImageReason.TRUNCATED),
        (b"RIFF\x24\0\0\0WEBPVP8 ", ImageReason.TRUNCATED),
        (b"GIF89a", ImageReason.TRUNCATED),
        (png_header(0, 10), ImageReason.TRUNCATED),
        (b"P6 0 0 255\n", ImageReason.TRUNCATED),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else value,
)
def test_what_cannot_be_decoded_is_refused_with_its_reason(encoded, expected):
    assert reason(encoded) is expected


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY, "grey jpeg", "cmyk jpeg", "gif"])
@pytest.mark.parametrize("part", [0.5, 0.7])
def test_half_a_file_is_truncated(kind, part):
    encoded = WHOLE[kind]
    assert reason(encoded[: int(len(encoded) * part)]) is ImageReason.TRUNCATED


def test_the_last_bytes_of_a_jpeg_are_missed_too():
    assert reason(LOSSY["jpeg"][:-2]) is ImageReason.TRUNCATED


def test_stray_bytes_in_a_jpeg_are_tolerated_as_in_a_few_files_of_imagenet():
    whole = LOSSY["progressive jpeg"]
    second_scan = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)
    stray = whole[:second_scan] + b"\x01\x02\x03" + whole[second_scan:]
    np.testing.assert_array_equal(decode(stray), decode(whole))
    np.testing.assert_array_equal(decode(whole + b"appended by a camera"), decode(whole))


def test_too_many_bytes_are_refused_unread():
    assert reason(LOSSLESS["bmp"], max_bytes=1000) is ImageReason.TOO_LARGE
    assert reason(b"x" * 1001, max_bytes=1000) is ImageReason.TOO_LARGE
    assert decode(LOSSLESS["bmp"], ImageLimits(max_bytes=len(LOSSLESS["bmp"]))).size


@pytest.mark.parametrize("encoded", WHOLE.values(), ids=WHOLE)
def test_too_many_pixels_are_refused_in_every_format(encoded):
    height, width, _ = decode(encoded).shape
    assert reason(encoded, max_pixels=height * width - 1) is ImageReason.TOO_MANY_PIXELS
    assert decode(encoded, ImageLimits(max_pixels=height * width)).size


def jpeg_claiming(width: int, height: int) -> bytes:
    whole = save(photo(), "JPEG")
    size = whole.index(b"\xff\xc0") + 5
    return whole[:size] + struct.pack(">HH", height, width) + whole[size + 4 :]


def webp_claiming(width: int, height: int) -> bytes:
    extended = b"VP8X" + struct.pack("<II", 10, 0)
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + extended + save(photo(), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    "png header alone": png_header(20000, 10000),
    "png": png_header(20000, 10000) + png_chunk(b"IDAT", zlib.compress(bytes(10**6))),
    "jpeg": jpeg_claiming(20000, 10000),
    "gif": b"GIF89a" + struct.pack("<HH3xcHHHHBB", 20000, 10000, b",", 0, 0, 20000, 10000, 0, 8),
    "bmp": LOSSLESS["bmp"][:18] + struct.pack("<ii", 20000, 10000) + LOSSLESS["bmp"][26:],
    "ppm": b"P6 20000 10000 255\n",
}


@pytest.mark.parametrize("encoded", BOMBS.values(), ids=BOMBS)
def test_200_megapixels_are_refused_from_the_header(encoded):
    with pytest.raises(
        ImageError, match="20000x10000 pixels; expected at most 64 million"
    ) as caught:
        decode(encoded)
    assert caught.value.reason is ImageReason.TOO_MANY_PIXELS


def test_refusing_bombs_takes_no_memory(tmp_path):
    paths = []
    for name, encoded in [*BOMBS.items(), ("webp", webp_claiming(16383, 12208))]:
        paths.append(tmp_path / name)
        paths[-1].write_bytes(encoded)
    program = """
import resource, sys
from irv2.images.decode import decode
from irv2.errors import ImageError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    encoded = open(path, "rb").read()
    before = peak()
    try:
        decode(encoded)
    except ImageError as error:
        print(path, peak() - before)
"""
    command = [sys.executable, "-c", program, *map(str, paths)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    grown_kib = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in lines}
    assert set(grown_kib) == set(map(str, paths))
    # 200 million pixels are 600 MB; loading Pillow's plugins takes a few.
    assert max(grown_kib.values()) < 50_000, grown_kib


def decodes_or_says_why(encoded: bytes) -> None:
    """Nothing but an image or an ImageError."""
    try:
        image = decode(encoded, ImageLimits(max_pixels=1_000_000))
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2:] == (3,)
    assert image.size


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1))
def test_any_beginning_of_a_file_decodes_or_is_refused(kind, part):
    decodes_or_says_why(WHOLE[kind][: round(len(WHOLE[kind]) * part)])


@FUZZ
@given(
    st.sampled_from(sorted(WHOLE)),
    # Headers are where damage does most: half of the flips fall into the first 64 bytes.
    st.lists(
        st.tuples(st.integers(0, 63) | st.integers(0, 10**6), st.integers(0, 255)), min_size=1
    ),
)
def test_flipped_bytes_decode_or_are_refused(kind, flips):
    damaged = bytearray(WHOLE[kind])
    for position, value in flips:
        damaged[position % len(damaged)] = value
    decodes_or_says_why(bytes(damaged))


@FUZZ
@given(st.binary(max_size=200))
def test_noise_behind_a_magic_number_is_refused_or_decodes(noise):
    for magic in (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"P6 ",
        b"P5\n",
    ):
        decodes_or_says_why(magic + noise)
    decodes_or_says_why(b"RIFF" + struct.pack("<I", len(noise) + 4) + b"WEBP" + noise)


def test_a_tiff_whose_size_is_a_fraction_is_refused():
    # Found by flipping bytes: Pillow raised TypeError. The type of ImageWidth becomes RATIONAL.
    damaged = bytearray(LOSSLESS["tiff"])
    directory = struct.unpack("<I", damaged[4:8])[0]
    for entry in range(struct.unpack_from("<H", damaged, directory)[0]):
        damaged[directory + 2 + 12 * entry + 2] = 5
    assert reason(bytes(damaged)) is ImageReason.TRUNCATED


@pytest.mark.parametrize("encoded", WHOLE.values(), ids=WHOLE)
def test_every_format_is_known_by_its_first_bytes(encoded):
    assert looks_like_image(encoded[:32])


@pytest.mark.parametrize(
    "head", [b"", b"hello", b"Peter", b"RIFF\0\0\0\0WAVE", b"%PDF", b"\xff\xd8"]
)
def test_other_files_are_not_taken_for_images(head):
    assert not looks_like_image(head)
