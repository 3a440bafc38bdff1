"""The one evaluation preprocessing: encoded image -> uint8 RGB (S, S, 3), identified by a hash.

Training's evaluation, calibration, the parity gate and the server all call `preprocess`. The hash
of its parameters travels in checkpoints, ONNX metadata and bundles; it covers mean and std too,
which are applied inside the network's graph.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
import PIL
import simplejpeg

from irv2 import __version__
from irv2.errors import ImageError, ImageReason, InputError, UsageError
from irv2.images.decode import ImageLimits, decode
from irv2.images.orientation import ORIENTATIONS, Orientation, exif_orientation
from irv2.images.resample import RESAMPLERS, Window
from irv2.system.files import read_encoded
from irv2.types import ImageSource, UInt8Array, check_rgb

# An image one pixel high and a million wide passes every limit on files, yet would fill the memory
# when its short side is enlarged; no photograph comes near this limit.
MAX_RESIZED_PIXELS = 64_000_000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Parameters: resize the shorter side to `resize` pixels, cut out the central `crop` square.

    `orientation` exif turns a picture first as its EXIF says. The usual value, stored, is left out
    of JSON and hash, which are older. `mean` and `std` are per RGB channel, for pixels scaled to
    0..1. Raises UsageError for impossible values.
    """

    resize: int = 328
    crop: int = 299
    resampling: str = "torch7-bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    orientation: Orientation = "stored"

    def __post_init__(self) -> None:
        if self.resampling not in RESAMPLERS:
            raise UsageError("resampling", self.resampling, " or ".join(RESAMPLERS))
        if self.orientation not in ORIENTATIONS:
            raise UsageError("orientation", self.orientation, " or ".join(ORIENTATIONS))
        if not 0 < self.crop <= self.resize:
            raise UsageError("crop", f"{self.crop} pixels", f"1 to {self.resize}, the resized side")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise UsageError(name, f"{len(values)} values", "3, one per RGB channel")

    @cached_property
    def sha256(self) -> str:
        """Hash over every parameter, the identity of the preprocessing."""
        return hashlib.sha256(json.dumps(self._fields(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the parameters and their hash, as in bundle.json."""
        lists = {"mean": list(self.mean), "std": list(self.std)}
        return {**self._fields(), **lists, "sha256": self.sha256}

    def _fields(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.orientation == "stored":
            del fields["orientation"]
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any], what: object) -> Self:
        """Read what `to_json` gave; raises InputError about `what` if it is not understood."""
        try:
            stated = fields["sha256"]
            parameters = {key: value for key, value in fields.items() if key != "sha256"}
            parameters |= {key: tuple(parameters[key]) for key in ("mean", "std")}
            result = cls(**parameters)
        except (KeyError, TypeError, UsageError) as error:
            raise InputError(
                what,
                f"preprocessing not understood ({error})",
                "one that this version knows",
                "use the irv2 version that wrote it",
            ) from error
        if result.sha256 != stated:
            raise InputError(
                what,
                f"preprocessing hash {str(stated)[:12]}",
                f"{result.sha256[:12]} for its parameters",
            )
        return result


class Prepared(NamedTuple):
    """An image as the network takes it, and the EXIF orientation that was left aside, or 0."""

    image_hwc: UInt8Array  # (crop, crop, 3)
    orientation: int = 0


def library_versions() -> dict[str, str]:
    """Return the versions of what decodes and resamples: others may give slightly other pixels."""
    return {
        "irv2": __version__,
        "pillow": PIL.__version__,
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
    }


def preprocess(
    encoded: bytes,
    config: Preprocess,
    limits: ImageLimits = ImageLimits(),  # noqa: B008 (frozen)
) -> UInt8Array:
    """Decode, then `resize_and_crop` to uint8 RGB (crop, crop, 3). Raises ImageError."""
    return resize_and_crop(decode(encoded, limits, config.orientation), config)


def prepare(
    image: ImageSource,
    config: Preprocess,
    limits: ImageLimits = ImageLimits(),  # noqa: B008
) -> Prepared:
    """Preprocess a path, encoded bytes or uint8 RGB (H, W, 3). Raises ImageError."""
    if isinstance(image, bytes):
        image_hwc = preprocess(image, config, limits)
        orientation = 1 if config.orientation == "exif" else exif_orientation(image)
        return Prepared(image_hwc, orientation if orientation > 1 else 0)
    if isinstance(image, str | Path):
        try:
            return prepare(read_encoded(image), config, limits)
        except ImageError as error:
            raise error.about(image) from error
    check_rgb(image)
    return Prepared(resize_and_crop(image, config))


def resize_and_crop(
    image_hwc: UInt8Array, config: Preprocess, out: UInt8Array | None = None
) -> UInt8Array:
    """Resize uint8 RGB (H, W, 3) of any size and cut out its centre, (crop, crop, 3) C-contiguous.

    Writes straight into `out`, such as a row of a batch, if it is given. The longer side is
    truncated to an integer and offsets are rounded up, as in the original (fb.resnet.torch,
    datasets/transforms.lua: Scale, CenterCrop). Raises ImageError for too many resized pixels.
    """
    height, width = checked_shape(image_hwc, config.resize)
    window = center_window(height, width, config.crop)
    if out is None:
        out = np.empty((config.crop, config.crop, 3), np.uint8)
    return RESAMPLERS[config.resampling](image_hwc, height, width, window, out)


def checked_shape(image_hwc: UInt8Array, shorter: int) -> tuple[int, int]:
    """Return `resized_shape` of uint8 RGB (H, W, 3); raises ImageError for too many pixels."""
    height, width = resized_shape(image_hwc.shape[0], image_hwc.shape[1], shorter)
    if height * width > MAX_RESIZED_PIXELS:
        raise ImageError(
            ImageReason.TOO_MANY_PIXELS,
            f"{image_hwc.shape[1]}x{image_hwc.shape[0]} pixels become {width}x{height}",
            f"at most {MAX_RESIZED_PIXELS / 1e6:g} million after resizing",
        )
    return height, width


def resized_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Return (height, width) in pixels, the shorter side `shorter` and the longer one truncated."""
    if min(height, width) == shorter:
        return height, width  # h / w * w may fall below h in floating point
    if width < height:
        return int(height / width * shorter), shorter
    return shorter, int(width / height * shorter)


def center_window(height: int, width: int, size: int) -> Window:
    """Return the central size x size square, at offset ceil((side - size) / 2)."""
    return Window(-(-(height - size) // 2), -(-(width - size) // 2), size, size)
