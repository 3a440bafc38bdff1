"""TIFF through Pillow, without what Pillow does to it unasked or reads wrongly."""

from typing import IO

from PIL.TiffImagePlugin import TiffImageFile

from irv2.errors import ImageError, ImageReason

# Tags (TIFF 6.0).
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR = 258, 262, 284
_SAMPLE_FORMAT, _YCBCR_SUBSAMPLING = 339, 530
WHITE_IS_ZERO, _YCBCR = 0, 6
_UNSIGNED, _SEPARATE = 1, 2


class TiffFile(TiffImageFile):
    """Pillow's TIFF, refused (ImageError) if Pillow would give other pixels than are meant."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            super().__init__(file)
        except KeyError as error:  # a table of compressions
            raise _unsupported(f"compression {error}") from error
        tags = self.tag_v2
        if set(tags.get(_SAMPLE_FORMAT, ())) - {_UNSIGNED}:  # 8-bit ones would be taken for others
            raise _unsupported("signed or floating-point values")
        if self.info["compression"] != "raw":
            return  # libtiff's work
        if tags.get(PLANAR) == _SEPARATE and max(tags.get(BITS_PER_SAMPLE, (1,))) > 8:
            raise _unsupported("uncompressed planes of 16 bits")
        if tags.get(PHOTOMETRIC) == _YCBCR and tags.get(_YCBCR_SUBSAMPLING) != (1, 1):
            raise _unsupported("uncompressed YCbCr at half the resolution")

    @property
    def bits(self) -> int:
        """Bits of the first channel."""
        return int(self.tag_v2.get(BITS_PER_SAMPLE, (1,))[0])

    @property
    def is_inverted(self) -> bool:
        """Whether grey runs from white to black."""
        return bool(self.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO)


def _unsupported(got: str) -> ImageError:
    expected = "8 or 16 unsigned bits per channel"
    return ImageError(ImageReason.UNSUPPORTED, f"a TIFF of {got}", expected, "save it as PNG")
