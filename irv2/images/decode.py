"""From encoded images to uint8 RGB (H, W, 3): the decoder of training, evaluation and serving.

Size limits are checked against the header, before any pixel is decoded. Decisions (DECISIONS.md):
EXIF orientation is ignored, as in the original; transparency is blended onto white; only the first
frame of an animation is decoded.
"""

import logging
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from irv2.errors import ImageError, ImageReason
from irv2.images.decode_cost import JpegFile, PiecewiseFile, num_scans, refuse_slow
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
}


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


def decode(encoded: bytes, limits: ImageLimits = ImageLimits()) -> UInt8Array:
    """Decode a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file to uint8 RGB (H, W, 3).

    Raises ImageError with the reason: EMPTY, TOO_LARGE, TOO_MANY_PIXELS,
    TOO_MANY_SCANS, UNSUPPORTED, NOT_AN_IMAGE or TRUNCATED.
    """
    if not encoded:
        raise ImageError(ImageReason.EMPTY, "0 bytes", "an image file")
    if len(encoded) > limits.max_bytes:
        raise ImageError(
            ImageReason.TOO_LARGE, f"{len(encoded)} bytes", f"at most {limits.max_bytes}"
        )
    if encoded.startswith(b"\xff\xd8\xff"):
        return _decode_jpeg(encoded, limits)
    return _decode_with_pillow(encoded, limits)


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins with these 32 bytes seems to be in one of `FORMATS`."""
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*"))
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
    if encoded.startswith(b"\x89PNG") and len(encoded) >= 24:  # before Pillow searches the data
        width, height = struct.unpack(">II", encoded[16:24])
        _check_pixels(width, height, limits)
    try:
        with _opened(encoded) as image:
            _check_pixels(*image.size, limits)
            return _rgb(image)
    except UnidentifiedImageError as error:
        raise _unidentified(encoded) from error
    except (ImageError, MemoryError):
        raise
    # For damaged files, Pillow's plugins raise OSError, SyntaxError, TypeError, struct.error, ...
    except Exception as error:
        raise_if_stopped()
        reason, expected = ImageReason.TRUNCATED, "a whole image file"
        raise ImageError(reason, str(error) or "ends early", expected) from error


def _opened(encoded: bytes) -> Image.Image:
    """Open an image: this reads the header, but no pixels yet."""
    file = PiecewiseFile(encoded)
    if encoded.startswith(b"\xff\xd8\xff"):
        return JpegFile(file)
    return Image.open(file, formats=FORMATS)


def _rgb(image: Image.Image) -> UInt8Array:
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise ImageError(ImageReason.UNSUPPORTED, "32-bit grey", "8 or 16 bits per channel")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


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
