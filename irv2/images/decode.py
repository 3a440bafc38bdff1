"""From encoded images to uint8 RGB (H, W, 3): the decoder of training, evaluation and serving.

Size limits are checked against the header, before any pixel is decoded. Decisions (DECISIONS.md):
EXIF orientation is ignored, as in the original, unless asked for; transparency is blended onto
white; only the first frame of an animation is decoded.
"""

import logging
import re
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.PpmImagePlugin import PpmImageFile

from irv2.errors import ImageError, ImageReason
from irv2.images.containers import (
    JPEG_MAGIC,
    PNG_MAGIC,
    TIFF_MAGIC,
    jpeg_segments,
    without_metadata,
)
from irv2.images.decode_cost import JpegFile, PiecewiseFile, num_scans, refuse_slow
from irv2.images.orientation import Orientation, as_stored, exif_orientation, turned
from irv2.images.tiff import TiffFile
from irv2.system.stop import raise_if_stopped
from irv2.types import UInt8Array

logger = logging.getLogger(__name__)

# Pillow's warnings about damaged metadata would let clients write into a server's log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Our own limit is checked against the header instead, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"}
    | {".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
# Formats that we recognise but don't decode: a clearer answer than "not an image".
_UNSUPPORTED_MAGIC = {
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"P7\n": "PAM",
}
# How Pillow says that it does not know a kind of file, as apart from a damaged one.
_UNKNOWN = re.compile("unsupported|not supported|unknown|cannot handle", re.IGNORECASE)
_HIERARCHICAL = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}  # frames of JPEG that no library decodes


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The largest images to decode: bytes of the file, width times height, scans of a JPEG.

    Progressive encoders write about 10 scans, the most elaborate ones fewer than 20.
    """

    max_bytes: int = 16 * 2**20
    max_pixels: int = 64_000_000
    max_scans: int = 32


# Local files are trusted more than what clients send.
FILE_LIMITS = ImageLimits(max_bytes=2**28, max_pixels=180_000_000)


def decode(
    encoded: bytes, limits: ImageLimits = ImageLimits(), orientation: Orientation = "stored"
) -> UInt8Array:
    """Decode a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file to uint8 RGB (H, W, 3).

    With `orientation` exif it is turned as its EXIF says, else left as it is stored.
    Raises ImageError with the reason: EMPTY, TOO_LARGE, TOO_MANY_PIXELS,
    TOO_MANY_SCANS, UNSUPPORTED, NOT_AN_IMAGE or TRUNCATED.
    """
    if not encoded:
        raise ImageError(ImageReason.EMPTY, "0 bytes", "an image file")
    if len(encoded) > limits.max_bytes:
        raise ImageError(
            ImageReason.TOO_LARGE, f"{len(encoded)} bytes", f"at most {limits.max_bytes}"
        )
    decode_kind = _decode_jpeg if encoded.startswith(JPEG_MAGIC) else _decode_with_pillow
    image = decode_kind(encoded, limits)
    return turned(image, exif_orientation(encoded)) if orientation == "exif" else image


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with these 32 bytes seems to be in one of `FORMATS`."""
    return (
        head.startswith((JPEG_MAGIC, PNG_MAGIC, b"GIF8", b"BM", *TIFF_MAGIC))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
    )


def _decode_jpeg(encoded: bytes, limits: ImageLimits) -> UInt8Array:
    _check_scans(encoded, limits)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
        _check_pixels(width, height, limits)
        if colorspace not in ("CMYK", "YCCK"):  # only Pillow knows Adobe's inverted inks
            image: UInt8Array = simplejpeg.decode_jpeg(encoded, colorspace="RGB")
            return image
    except (ValueError, KeyError) as error:
        # simplejpeg refuses what libjpeg only warns about (stray bytes, as in a few files of
        # ImageNet) and rare subsamplings. Pillow reads these, gives the same pixels, and refuses
        # half a file.
        logger.debug("left to Pillow: %r", error)
    return _decode_with_pillow(encoded, limits)


def _decode_with_pillow(encoded: bytes, limits: ImageLimits) -> UInt8Array:
    refuse_slow(encoded)
    if encoded.startswith(PNG_MAGIC) and len(encoded) >= 24:  # before Pillow searches the data
        width, height = struct.unpack(">II", encoded[16:24])
        _check_pixels(width, height, limits)
        encoded = without_metadata(encoded)
    if encoded.startswith(TIFF_MAGIC):
        encoded = as_stored(encoded)
    try:
        with _opened(encoded) as image:
            _check_pixels(*image.size, limits)
            return _rgb(image, encoded)
    except UnidentifiedImageError as error:
        raise _unidentified(encoded) from error
    except (ImageError, MemoryError):
        raise
    # For damaged files, Pillow's plugins raise OSError, SyntaxError, TypeError, struct.error, ...
    except Exception as error:
        raise_if_stopped()
        raise _undecodable(encoded, str(error) or "ends early") from error


def _opened(encoded: bytes) -> Image.Image:
    """Open an image: this reads the header, but no pixels yet."""
    file = PiecewiseFile(encoded)
    if encoded.startswith(JPEG_MAGIC):
        return JpegFile(file)
    if encoded.startswith(TIFF_MAGIC):
        return TiffFile(file)
    return Image.open(file, formats=FORMATS)


def _rgb(image: Image.Image, encoded: bytes) -> UInt8Array:
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ImageError(ImageReason.UNSUPPORTED, "32-bit grey", "8 or 16 bits per channel")
    if isinstance(image, PpmImageFile) and image.tile[0].codec_name == "ppm":
        return _scaled_samples(image, encoded)
    if image.format == "PNG" and "transparency" in image.info:
        _fit_transparency(image, depth=encoded[24])
    if image.mode.startswith("I"):
        return _rgb_from_16_bits(image)
    if image.has_transparency_data and not _is_blank(image):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _rgb_from_16_bits(image: Image.Image) -> UInt8Array:
    """Return the upper byte of grey, which Pillow's own conversion would clip."""
    values = np.asarray(image)
    bits, is_inverted = (
        (image.bits, image.is_inverted) if isinstance(image, TiffFile) else (16, False)
    )
    grey = (values >> (bits - 8)).astype(np.uint8)
    if is_inverted:
        grey = 255 - grey
    grey[values == image.info.get("transparency", -1)] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)


def _scaled_samples(image: PpmImageFile, encoded: bytes) -> UInt8Array:
    """Decode binary PPM or PGM of an unusual maximum, which Pillow does pixel by pixel."""
    _, _, offset, arguments = image.tile[0]
    assert isinstance(arguments, tuple)
    maximum = int(arguments[1])
    height, width, num_channels = image.height, image.width, len(image.getbands())
    kind = np.dtype(">u2" if maximum > 255 else "u1")
    samples = np.frombuffer(encoded, kind, height * width * num_channels, offset)
    white = 65535 if image.mode == "I" else 255
    levels = np.minimum(np.rint(np.arange(256**kind.itemsize) / maximum * white), white)
    if white == 65535:  # the upper byte, as in other formats
        levels //= 256
    pixels = levels.astype(np.uint8)[samples].reshape(height, width, num_channels)
    return np.repeat(pixels, 3, axis=2) if num_channels == 1 else pixels


def _fit_transparency(image: Image.Image, depth: int) -> None:
    """Give PNG's transparent colour the range of the pixels, which Pillow widens without it."""
    if image.mode == "RGB" and depth == 16:
        got = "16-bit RGB with a transparent colour"
        raise ImageError(ImageReason.UNSUPPORTED, got, "an alpha channel", "save it with one")
    if image.mode == "L":
        image.info["transparency"] *= 255 // (2**depth - 1)


def _is_blank(image: Image.Image) -> bool:
    """Whether the file says that nothing is visible: BMP's writers often leave alpha at 0."""
    return image.format == "BMP" and image.getchannel("A").getextrema()[1] == 0


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            ImageReason.TOO_MANY_PIXELS,
            f"{width}x{height} pixels",
            f"at most {limits.max_pixels / 1e6:g} million",
        )


def _check_scans(encoded: bytes, limits: ImageLimits) -> None:
    if num_scans(encoded, limits.max_scans) > limits.max_scans:
        got, expected = f"more than {limits.max_scans} scans", f"at most {limits.max_scans}"
        raise ImageError(ImageReason.TOO_MANY_SCANS, got, expected)


def _undecodable(encoded: bytes, problem: str) -> ImageError:
    """Return the error for a file in one of `FORMATS` that a library refuses."""
    segments = jpeg_segments(encoded) if encoded.startswith(JPEG_MAGIC) else ()
    if any(segment.kind in _HIERARCHICAL for segment in segments):
        problem = "unsupported hierarchical JPEG"
    if _UNKNOWN.search(problem):
        expected, way_out = "8 or 16 bits per channel in a usual layout", "save it as PNG or JPEG"
        return ImageError(ImageReason.UNSUPPORTED, problem, expected, way_out)
    return ImageError(ImageReason.TRUNCATED, problem, "a whole image file")


def _unidentified(encoded: bytes) -> ImageError:
    expected = ", ".join(FORMATS)
    head = encoded[:32].lstrip()
    kinds = [kind for magic, kind in _UNSUPPORTED_MAGIC.items() if head.startswith(magic)]
    if b"<svg" in encoded[:1024]:
        kinds.append("SVG")
    if encoded[4:8] == b"ftyp":
        kinds.append("AVIF, HEIC or video")
    if kinds:
        return ImageError(ImageReason.UNSUPPORTED, f"{kinds[0]} file", expected)
    if looks_like_image(encoded[:32]):
        return ImageError(ImageReason.TRUNCATED, f"{len(encoded)} bytes", "a whole image file")
    return ImageError(ImageReason.NOT_AN_IMAGE, f"begins with {encoded[:8]!r}", expected)
