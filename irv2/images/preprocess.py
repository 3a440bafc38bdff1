"""The one evaluation preprocessing: encoded image -> uint8 RGB (S, S, 3), under an identity.

Training's evaluation, calibration, the parity gate and the server all call `preprocess`. Its
parameters have a hash that travels in checkpoint, ONNX metadata and bundle; mean and std are part
of it but are applied inside the network's graph.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import PIL
import simplejpeg

from irv2 import __version__
from irv2.errors import ImageError, ImageReason, InputError, UsageError
from irv2.images.decode import ImageLimits, decode, read_encoded
from irv2.images.resample import RESAMPLERS, Window
from irv2.types import ImageSource, UInt8Array, check_rgb

# A picture one pixel high and a million wide passes every limit on files and yet fills the memory
# when its short side is enlarged; no photograph comes near this.
MAX_RESIZED_PIXELS = 64_000_000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Shorter side to `resize` pixels, then the central `crop` x `crop` square.

    `mean` and `std` are per RGB channel, for pixels scaled to 0..1.
    """

    resize: int = 328
    crop: int = 299
    resampling: str = "torch7-bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resampling not in RESAMPLERS:
            raise UsageError("resampling", self.resampling, " or ".join(RESAMPLERS))
        if not 0 < self.crop <= self.resize:
            raise UsageError("crop", f"{self.crop} pixels", f"1 to {self.resize}, the resized side")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise UsageError(name, f"{len(values)} values", "3, one per RGB channel")

    @cached_property
    def sha256(self) -> str:
        """Identity: a hash over every parameter."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As in bundle.json: the parameters and their hash."""
        return {
            **asdict(self),
            "mean": list(self.mean),
            "std": list(self.std),
            "sha256": self.sha256,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], what: object) -> Self:
        """Read `to_json` back; raises InputError about `what` where we can't honour it."""
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


def library_versions() -> dict[str, str]:
    """What decodes and resamples: another version may give other pixels under one identity."""
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
    out: UInt8Array | None = None,
) -> UInt8Array:
    """Encoded image -> uint8 RGB (crop, crop, 3), see `resize_and_crop`. Raises ImageError."""
    return resize_and_crop(decode(encoded, limits), config, out)


def prepare(image: ImageSource, config: Preprocess) -> UInt8Array:
    """A path, encoded bytes or a uint8 RGB (H, W, 3) array -> uint8 (crop, crop, 3)."""
    if isinstance(image, bytes):
        return preprocess(image, config)
    if isinstance(image, str | Path):
        try:
            return preprocess(read_encoded(Path(image)), config)
        except ImageError as error:
            raise error.about(image) from error
    check_rgb(image)
    return resize_and_crop(image, config)


def resize_and_crop(
    image_hwc: UInt8Array, config: Preprocess, out: UInt8Array | None = None
) -> UInt8Array:
    """uint8 RGB (H, W, 3) of any size -> (crop, crop, 3), C-contiguous.

    Written straight into `out` where it is given, for example a row of a batch.

    The longer side is truncated to an integer and offsets are rounded up, as in the original
    (fb.resnet.torch, datasets/transforms.lua: Scale, CenterCrop).
    """
    height, width = checked_shape(image_hwc, config.resize)
    window = center_window(height, width, config.crop)
    if out is None:
        out = np.empty((config.crop, config.crop, 3), np.uint8)
    return RESAMPLERS[config.resampling](image_hwc, height, width, window, out)


def checked_shape(image_hwc: UInt8Array, shorter: int) -> tuple[int, int]:
    """`resized_shape` of uint8 RGB (H, W, 3); raises ImageError where that is too many pixels."""
    height, width = resized_shape(image_hwc.shape[0], image_hwc.shape[1], shorter)
    if height * width > MAX_RESIZED_PIXELS:
        raise ImageError(
            ImageReason.TOO_MANY_PIXELS,
            f"{image_hwc.shape[1]}x{image_hwc.shape[0]} pixels become {width}x{height}",
            f"at most {MAX_RESIZED_PIXELS / 1e6:g} million after resizing",
        )
    return height, width


def resized_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `shorter` and the longer truncated."""
    if min(height, width) == shorter:
        return height, width  # h / w * w may fall below h in floating point
    if width < height:
        return int(height / width * shorter), shorter
    return shorter, int(width / height * shorter)


def center_window(height: int, width: int, size: int) -> Window:
    """The central size x size square, its offset ceil((side - size) / 2)."""
    return Window(-(-(height - size) // 2), -(-(width - size) // 2), size, size)
