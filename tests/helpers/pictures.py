"""One picture in every format and depth, written byte by byte where no library would write it.

`PICTURES` maps a name to the file, the pixels it means, and those without its transparency.
"""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 36
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
RGB16 = np.stack([_X * 1800, _Y * 2700, 65535 - _X * 1000 - _Y * 700], axis=-1).astype(np.uint16)
RGB = (RGB16 >> 8).astype(np.uint8)
GREY16 = RGB16[:, :, 0]
PLAIN, ALPHA = 0, 192  # BMP's alpha that means nothing, and one that lets white through
LITTLE, BIG = "<", ">"


class Picture(NamedTuple):
    """A file; `opaque` are its pixels where alpha is ignored."""

    encoded: bytes
    expected: np.ndarray | None = None  # None: of no use here
    opaque: np.ndarray | None = None
    tolerance: int = 1


def save(image: np.ndarray | Image.Image, fmt: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(stream, fmt, **options)
    return stream.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def levels(bits: int) -> np.ndarray:
    """The picture's grey in so many bits."""
    return GREY16.astype(int) >> (16 - bits)


def grey_of(bits: int) -> np.ndarray:
    """What these levels look like in 8 bits."""
    return grey(levels(bits) >> (bits - 8) if bits > 8 else levels(bits) * 255 // (2**bits - 1))


def packed(values: np.ndarray, bits: int, order: str = BIG) -> bytes:
    """Rows of values in so many bits, each row padded to a byte."""
    rows = values.reshape(len(values), -1)
    if bits == 16:
        return rows.astype(f"{order}u2").tobytes()
    ones = rows[:, :, None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(ones.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def on_white(image: np.ndarray, alpha: int) -> np.ndarray:
    return np.rint(255 - (255 - image.astype(float)) * alpha / 255).astype(np.uint8)


def with_channel(image: np.ndarray, value: int) -> np.ndarray:
    return np.concatenate([image, np.full((*image.shape[:2], 1), value, image.dtype)], axis=2)


# PNG


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, colour: int, data: bytes, extra: bytes = b"") -> bytes:
    row = len(data) // HEIGHT
    lines = b"".join(b"\0" + data[at : at + row] for at in range(0, len(data), row))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(lines)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + pixels


def _png_pictures() -> dict[str, Picture]:
    found = {}
    for bits in (1, 2, 4, 8, 16):
        data, transparent = packed(levels(bits), bits), int(levels(bits)[0, 20 if bits > 1 else 0])
        seen, opaque = grey_of(bits), grey_of(bits)
        seen[levels(bits) == transparent] = 255
        key = png_chunk(b"tRNS", struct.pack(">H", transparent))
        found[f"PNG, grey, {bits} bit"] = Picture(png(bits, 0, data), opaque)
        name = f"PNG, grey, {bits} bit, a transparent level"
        found[name] = Picture(png(bits, 0, data, key), seen, opaque)
        if bits < 16:
            steps = np.arange(2**bits) * 255 // (2**bits - 1)
            palette = png_chunk(b"PLTE", steps.astype(np.uint8).repeat(3).tobytes())
            key = png_chunk(b"tRNS", b"\xff" * transparent + b"\0")
            found[f"PNG, palette, {bits} bit"] = Picture(png(bits, 3, data, palette), opaque)
            name = f"PNG, palette, {bits} bit, a transparent colour"
            found[name] = Picture(png(bits, 3, data, palette + key), seen, opaque)
    for bits, pixels in ((8, RGB), (16, RGB16)):
        data, colour = packed(pixels, bits), pixels[3, 4]
        found[f"PNG, RGB, {bits} bit"] = Picture(png(bits, 2, data), RGB)
        key, seen = png_chunk(b"tRNS", colour.astype(">u2").tobytes()), RGB.copy()
        seen[3, 4] = 255
        name = f"PNG, RGB, {bits} bit, a transparent colour"
        found[name] = Picture(png(bits, 2, data, key), seen, RGB)
        alpha = ALPHA * (257 if bits == 16 else 1)
        encoded = png(bits, 6, packed(with_channel(pixels, alpha), bits))
        found[f"PNG, RGB and alpha, {bits} bit"] = Picture(encoded, on_white(RGB, ALPHA), RGB)
        encoded = png(bits, 4, packed(with_channel(pixels[:, :, :1], alpha), bits))
        seen = on_white(grey_of(8), ALPHA)
        found[f"PNG, grey and alpha, {bits} bit"] = Picture(encoded, seen, grey_of(8))
    much, data = b"x\0\0" + zlib.compress(bytes(2_000_000)), packed(RGB, 8)
    wrong = png_chunk(b"tEXt", b"a\0b")[:-1] + b"?"
    for name, extra in {
        "2 MB of ICC profile": png_chunk(b"iCCP", much),
        "2 MB of text": png_chunk(b"zTXt", much),
        "a wrong checksum in a comment": wrong,
    }.items():
        found[f"PNG, {name}"] = Picture(png(8, 2, data, extra), RGB)
    return found


# TIFF


def tiff(
    bits: int,
    photometric: int,
    *strips: bytes,
    channels: int = 1,
    order: str = LITTLE,
    sample_format: int = 1,
    deflate: bool = True,
    more: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """A TIFF of one strip, or of one per channel."""
    strips = tuple(map(zlib.compress, strips)) if deflate else strips
    planar = 2 if len(strips) > 1 else 1
    values = {
        **{256: (WIDTH,), 257: (HEIGHT,), 258: (bits,) * channels, 259: (8 if deflate else 1,)},
        **{262: (photometric,), 277: (channels,), 278: (HEIGHT,), 284: (planar,)},
        339: (sample_format,) * channels,
        **(more or {}),
    }
    entries = {tag: (3, struct.pack(f"{order}{len(v)}H", *v), len(v)) for tag, v in values.items()}
    entries[279] = (4, struct.pack(f"{order}{len(strips)}I", *map(len, strips)), len(strips))
    entries[273] = (4, bytes(4 * len(strips)), len(strips))
    start = 8 + 2 + 12 * len(entries) + 4
    beside_bytes = sum(len(data) for _, data, _ in entries.values() if len(data) > 4)
    offsets = [start + beside_bytes + sum(map(len, strips[:i])) for i in range(len(strips))]
    entries[273] = (4, struct.pack(f"{order}{len(strips)}I", *offsets), len(strips))
    directory, beside = b"", b""
    for tag, (kind, data, num) in sorted(entries.items()):
        at = struct.pack(f"{order}I", start + len(beside))
        directory += struct.pack(f"{order}HHI", tag, kind, num)
        directory += data.ljust(4, b"\0") if len(data) <= 4 else at
        beside += data if len(data) > 4 else b""
    magic = b"II*\0" if order == LITTLE else b"MM\0*"
    head = magic + struct.pack(f"{order}IH", 8, len(entries))
    return head + directory + bytes(4) + beside + b"".join(strips)


def _tiff_pictures() -> dict[str, Picture]:
    found = {}
    for bits in (1, 2, 4, 8, 12, 16):
        for photometric, name in ((1, "black is 0"), (0, "white is 0")):
            for order, end in ((LITTLE, "little-endian"), (BIG, "big-endian")):
                stored = levels(bits) if photometric else 2**bits - 1 - levels(bits)
                encoded = tiff(bits, photometric, packed(stored, bits, order), order=order)
                found[f"TIFF, grey, {bits} bit, {name}, {end}"] = Picture(encoded, grey_of(bits))
    parts = GREY16 / 65535
    for name, encoded in {
        "8 bit, signed": tiff(8, 1, packed(levels(8), 8), sample_format=2),
        "16 bit, signed": tiff(16, 1, packed(levels(16), 16, LITTLE), sample_format=2),
        "16 bit, floating point": tiff(16, 1, parts.astype("<f2").tobytes(), sample_format=3),
        "32 bit": tiff(32, 1, GREY16.astype("<u4").tobytes()),
        "32 bit, floating point": tiff(32, 1, parts.astype("<f4").tobytes(), sample_format=3),
        "64 bit, floating point": tiff(64, 1, parts.astype("<f8").tobytes(), sample_format=3),
    }.items():
        found[f"TIFF, grey, {name}"] = Picture(encoded)
    for bits, pixels in ((8, RGB), (16, RGB16)):
        planes = [packed(pixels[:, :, i], bits, LITTLE) for i in range(3)]
        for deflate, name in ((True, "compressed"), (False, "uncompressed")):
            options = {"channels": 3, "deflate": deflate}
            encoded = tiff(bits, 2, packed(pixels, bits, LITTLE), **options)
            found[f"TIFF, RGB, {bits} bit, {name}"] = Picture(encoded, RGB)
            encoded = tiff(bits, 2, *planes, **options)
            found[f"TIFF, RGB in planes, {bits} bit, {name}"] = Picture(encoded, RGB)
        white, alpha = 256**pixels.itemsize - 1, ALPHA * (257 if bits == 16 else 1)
        inks = packed(with_channel(white - pixels, 0), bits, LITTLE)
        found[f"TIFF, CMYK, {bits} bit"] = Picture(tiff(bits, 5, inks, channels=4), RGB)
        clear = {338: (2,)}
        encoded = tiff(
            bits, 2, packed(with_channel(pixels, alpha), bits, LITTLE), channels=4, more=clear
        )
        found[f"TIFF, RGB and alpha, {bits} bit"] = Picture(encoded, on_white(RGB, ALPHA), RGB)
        encoded = tiff(
            bits,
            1,
            packed(with_channel(pixels[:, :, :1], alpha), bits, LITTLE),
            channels=2,
            more=clear,
        )
        seen = on_white(grey_of(8), ALPHA)
        found[f"TIFF, grey and alpha, {bits} bit"] = Picture(encoded, seen, grey_of(8))
    multiplied = with_channel((RGB * (ALPHA / 255)).astype(np.uint8), ALPHA).tobytes()
    encoded = tiff(8, 2, multiplied, channels=4, more={338: (1,)})
    found["TIFF, RGB multiplied by alpha, 8 bit"] = Picture(encoded, on_white(RGB, ALPHA), RGB, 3)
    for bits in (4, 12):
        encoded = tiff(bits, 2, packed(RGB16.astype(int) >> (16 - bits), bits), channels=3)
        found[f"TIFF, RGB, {bits} bit"] = Picture(encoded, RGB)
    colours = tuple(257 * value for value in range(255, -1, -1)) * 3
    encoded = tiff(8, 3, packed(255 - levels(8), 8), more={320: colours})
    found["TIFF, palette, 8 bit"] = Picture(encoded, grey_of(8))
    luma = np.asarray(Image.fromarray(RGB).convert("YCbCr")).tobytes()
    for deflate, name in ((True, "compressed"), (False, "uncompressed")):
        encoded = tiff(8, 6, luma, channels=3, deflate=deflate, more={530: (1, 1)})
        found[f"TIFF, YCbCr, {name}"] = Picture(encoded, RGB, tolerance=4)
    flat = np.full((HEIGHT // 2, WIDTH // 2, 6), [100, 100, 100, 100, 90, 240], np.uint8)
    red = np.asarray(Image.new("YCbCr", (WIDTH, HEIGHT), (100, 90, 240)).convert("RGB"))
    encoded = tiff(8, 6, flat.tobytes(), channels=3, deflate=False, more={530: (2, 2)})
    found["TIFF, YCbCr at half the resolution, uncompressed"] = Picture(encoded, red, tolerance=4)
    for kind in ("tiff_lzw", "packbits", "zstd", "lzma"):
        encoded = save(RGB, "TIFF", compression=kind)
        found[f"TIFF, RGB, {kind.removeprefix('tiff_')}"] = Picture(encoded, RGB)
    found["TIFF, RGB, jpeg"] = Picture(save(RGB, "TIFF", compression="jpeg"), RGB, tolerance=40)
    for kind in ("group3", "group4"):
        encoded = save(Image.fromarray(grey_of(1)).convert("1"), "TIFF", compression=kind)
        found[f"TIFF, fax, {kind}"] = Picture(encoded, grey_of(1))
    return found


# JPEG


def _segment(kind: int, data: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data


def _small_jpeg(frame: int, bits: int) -> bytes:
    """Uniform grey of 8 x 8 pixels: every difference is zero, in whatever process."""
    is_lossless = frame == 0xC3
    table = bytes([1, *bytes(15), 0])  # one code, of one bit, for zero
    encoded = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64)
    encoded += _segment(frame, struct.pack(">BHHB", bits, 8, 8, 1) + b"\1\x11\0")
    encoded += _segment(0xC4, b"\0" + table + b"\x10" + table)
    encoded += _segment(0xDA, b"\1\1\0" + (b"\1\0\0" if is_lossless else b"\0\x3f\0"))
    return encoded + (bytes(8) if is_lossless else b"\x3f") + b"\xff\xd9"


def _jpeg_pictures() -> dict[str, Picture]:
    found = {}
    for mode, expected in (("L", None), ("RGB", RGB), ("CMYK", RGB)):
        image = Image.fromarray(RGB).convert(mode)
        pixels = np.asarray(image.convert("RGB")) if expected is None else expected
        for progressive, name in ((False, "sequential"), (True, "progressive")):
            encoded = save(image, "JPEG", quality=95, progressive=progressive)
            kind = {"L": "grey", "RGB": "YCbCr", "CMYK": "CMYK, inverted as by Adobe"}[mode]
            found[f"JPEG, {kind}, {name}"] = Picture(encoded, pixels, tolerance=12)
    encoded = save(RGB, "JPEG", quality=95, keep_rgb=True)
    found["JPEG, RGB"] = Picture(encoded, RGB, tolerance=4)
    uniform = np.full((8, 8, 3), 128, np.uint8)
    for name, frame, bits in (
        ("grey, arithmetic coding", 0xC9, 8),
        ("grey, 12 bit", 0xC1, 12),
        ("grey, lossless, 8 bit", 0xC3, 8),
        ("grey, lossless, 12 bit", 0xC3, 12),
        ("grey, lossless, 16 bit", 0xC3, 16),
        ("grey, hierarchical", 0xC5, 8),
    ):
        found[f"JPEG, {name}"] = Picture(_small_jpeg(frame, bits), uniform)
    return found


# BMP


def bmp(
    bits: int, data: bytes, masks: tuple[int, ...] = (), header: int = 40, palette: bytes = b""
) -> bytes:
    """The rows from top to bottom."""
    compression = 3 if masks else 0
    size = (header, WIDTH, -HEIGHT, 1, bits, compression, len(data), 0, 0, 0, 0)
    head = struct.pack("<IiiHHIIiiII", *size) + struct.pack(f"<{len(masks)}I", *masks)
    head = head.ljust(header, b"\0")
    return (
        b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(head) + len(palette)) + head + palette + data
    )


def _bmp_pictures() -> dict[str, Picture]:
    found = {}
    steps = b"".join(bytes([i, i, i, 0]) for i in range(255, -1, -1))
    found["BMP, palette, 8 bit"] = Picture(
        bmp(8, packed(255 - levels(8), 8), palette=steps), grey_of(8)
    )
    bgr = RGB[:, :, ::-1]
    found["BMP, RGB, 24 bit"] = Picture(bmp(24, bgr.tobytes()), RGB)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    for alpha, name in ((PLAIN, "alpha 0 throughout"), (ALPHA, "alpha"), (255, "alpha full")):
        data, seen = with_channel(bgr, alpha).tobytes(), on_white(RGB, alpha or 255)
        for header, version in ((56, 3), (108, 4), (124, 5)):
            encoded = bmp(32, data, masks, header)
            found[f"BMP version {version}, RGB, 32 bit, {name}"] = Picture(encoded, seen, RGB)
    found["BMP, RGB, 32 bit"] = Picture(bmp(32, with_channel(bgr, PLAIN).tobytes()), RGB)
    red, green, blue = np.moveaxis(RGB.astype(int), 2, 0)
    for name, pixels, masks in (
        ("15 bit", red >> 3 << 10 | green >> 3 << 5 | blue >> 3, ()),
        ("16 bit", red >> 3 << 11 | green >> 2 << 5 | blue >> 3, (0xF800, 0x7E0, 0x1F)),
    ):
        encoded = bmp(16, packed(pixels, 16, LITTLE), masks)
        found[f"BMP, RGB, {name}"] = Picture(encoded, RGB, tolerance=8)
    pixels = red >> 4 << 8 | green >> 4 << 4 | blue >> 4 | 0xF000
    encoded = bmp(16, packed(pixels, 16, LITTLE), (0xF00, 0xF0, 0xF, 0xF000), 108)
    found["BMP version 4, RGB, 12 bit, alpha"] = Picture(encoded, RGB, tolerance=16)
    return found


# PNM and the others


def _pnm_pictures() -> dict[str, Picture]:
    found = {}
    bits = (levels(1) ^ 1).astype(np.uint8)
    found["PBM (P1), plain"] = Picture(
        b"P1 36 24 " + b" ".join(b"%d" % v for v in bits.flat), grey_of(1)
    )
    found["PBM (P4)"] = Picture(b"P4 36 24\n" + packed(bits, 1), grey_of(1))
    for most in (15, 255, 1023, 65535):
        for pixels, plain, raw, kind in ((GREY16[:, :, None], 2, 5, "PGM"), (RGB16, 3, 6, "PPM")):
            values = pixels.astype(int) * most // 65535
            seen = np.rint(np.broadcast_to(values, RGB16.shape) * 255 / most).astype(np.uint8)
            size = b"%d %d %d\n" % (WIDTH, HEIGHT, most)
            text = b" ".join(b"%d" % value for value in values.flat)
            name = f"to {most}"
            found[f"{kind} (P{plain}), plain, {name}"] = Picture(
                b"P%d " % plain + size + text, seen
            )
            data = values.astype(">u2" if most > 255 else "u1").tobytes()
            found[f"{kind} (P{raw}), {name}"] = Picture(b"P%d " % raw + size + data, seen)
    big = np.tile(RGB16, (10, 10, 1))
    encoded = b"P6 %d %d 65535\n" % (10 * WIDTH, 10 * HEIGHT) + big.astype(">u2").tobytes()
    found["PPM (P6), to 65535, large"] = Picture(encoded, np.rint(big / 257).astype(np.uint8))
    found["PAM (P7)"] = Picture(
        b"P7\nWIDTH 36\nHEIGHT 24\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + RGB.tobytes(), RGB
    )
    found["PFM (Pf)"] = Picture(b"Pf 36 24 -1.0\n" + (GREY16 / 65535).astype("<f4").tobytes())
    return found


def _other_pictures() -> dict[str, Picture]:
    image, alpha = Image.fromarray(RGB), Image.fromarray(with_channel(RGB, ALPHA), "RGBA")
    few = image.quantize(64)
    clear, index = np.asarray(few.convert("RGB")).copy(), int(np.asarray(few)[3, 4])
    opaque = clear.copy()
    clear[np.asarray(few) == index] = 255
    return {
        "GIF": Picture(save(few, "GIF"), opaque),
        "GIF, a transparent colour": Picture(save(few, "GIF", transparency=index), clear, opaque),
        "WebP, lossy": Picture(save(image, "WEBP", quality=95), RGB, tolerance=40),
        "WebP, lossless": Picture(save(image, "WEBP", lossless=True), RGB),
        "WebP, lossless, alpha": Picture(
            save(alpha, "WEBP", lossless=True), on_white(RGB, ALPHA), RGB
        ),
    }


PICTURES = {
    **_jpeg_pictures(),
    **_png_pictures(),
    **_other_pictures(),
    **_bmp_pictures(),
    **_tiff_pictures(),
    **_pnm_pictures(),
}
