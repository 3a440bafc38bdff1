"""Conversion between Python and the messages: images out, results in."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from irv2.errors import ImageError, ImageReason
from irv2.protocol import image_error_from_status
from irv2.results import Result, Score
from irv2.system.files import read_encoded
from irv2.types import ImageSource, check_rgb
from irv2.v1 import classifier_pb2

IMAGES_PER_REQUEST = 32  # more would gain nothing and make a retry more expensive
# Protobuf adds up to 30 bytes per image (tags, lengths, height, width) and 6 for top_k.
IMAGE_OVERHEAD_BYTES, REQUEST_OVERHEAD_BYTES = 32, 16


def split_into_requests(
    images: Iterable[ImageSource], limits: classifier_pb2.Limits
) -> Iterator[list[ImageSource]]:
    """Group images, in order, into requests as large as the server's limits allow."""
    request = OpenRequest(limits)
    for image in images:
        if not request.add(image):
            yield request.images
            request = OpenRequest(limits)
            request.add(image)
    if request.images:
        yield request.images


class OpenRequest:
    """A request that is being filled with images, within the server's limits."""

    def __init__(self, limits: classifier_pb2.Limits) -> None:
        self.images: list[ImageSource] = []
        self.is_full = False
        self._most_images = images_per_request(limits)
        self._bytes_left = limits.max_message_bytes - REQUEST_OVERHEAD_BYTES

    def add(self, image: ImageSource) -> bool:
        """Add an image; return False if the request is full without it. The first always fits."""
        size = _num_bytes(image) + IMAGE_OVERHEAD_BYTES
        if self.images and (self.is_full or size > self._bytes_left):
            self.is_full = True
            return False
        self.images.append(image)
        self._bytes_left -= size
        self.is_full = len(self.images) >= self._most_images
        return True


def images_per_request(limits: classifier_pb2.Limits) -> int:
    """Return the largest number of images in a request, if their bytes fit."""
    return min(limits.max_images, IMAGES_PER_REQUEST)


def bytes_per_image(limits: classifier_pb2.Limits) -> int:
    """Return the largest size in bytes of an image sent in a request of its own."""
    return max(0, limits.max_message_bytes - REQUEST_OVERHEAD_BYTES - IMAGE_OVERHEAD_BYTES)


def _num_bytes(image: ImageSource) -> int:
    if isinstance(image, bytes):
        return len(image)
    if isinstance(image, str | Path):
        try:
            return Path(image).stat().st_size
        except (OSError, ValueError):
            return 0  # wire_image says why it can't be read
    return image.nbytes if isinstance(image, np.ndarray) else 0  # wire_image refuses the rest


def wire_image(image: ImageSource, max_bytes: int) -> classifier_pb2.Image:
    """Build the message for one image: a file's bytes unchanged, or pixels.

    Raises ImageError if it can't be read or is larger than `max_bytes`.
    """
    if _num_bytes(image) > max_bytes:
        got, expected = f"{_num_bytes(image)} bytes", f"at most {max_bytes} in a message"
        raise ImageError(ImageReason.TOO_LARGE, got, expected, what=_name(image))
    if isinstance(image, bytes):
        return classifier_pb2.Image(encoded=image)
    if isinstance(image, str | Path):
        return classifier_pb2.Image(encoded=read_encoded(image))
    check_rgb(image)
    height, width, _ = image.shape
    pixels = classifier_pb2.Pixels(rgb=image.tobytes(), height=height, width=width)
    return classifier_pb2.Image(pixels=pixels)


def _name(image: ImageSource) -> str | Path:
    return image if isinstance(image, str | Path) else "image"


def result_from(result: classifier_pb2.Result, image: ImageSource, model_id: str) -> Result:
    """Convert the answer for `image`: its scores, or the server's error as a named ImageError."""
    if not result.HasField("error"):
        scores = tuple(Score(s.index, s.label, s.probability) for s in result.scores)
        return Result(scores, model_id=model_id, orientation=result.orientation)
    error = image_error_from_status(result.error, _name(image))
    return Result(error=error, model_id=model_id)
