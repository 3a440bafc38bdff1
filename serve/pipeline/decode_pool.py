"""Images as clients send them to the network's input, in a pool of threads; each fails alone."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from irv2.errors import ImageError, ImageReason
from irv2.images.decode import ImageLimits
from irv2.images.preprocess import Prepared, Preprocess, prepare
from irv2.types import UInt8Array
from irv2.v1 import classifier_pb2


class ImageTime:
    """An exponential average of the time to decode an image; 0 before the first one."""

    WEIGHT = 0.1  # of the newest
    # One image counts for at most this many times the average: a single slow one must not make
    # the next requests look hopeless, while 20 of them are believed.
    MAX_FACTOR = 4.0

    def __init__(self) -> None:
        self.average_s = 0.0

    def learn(self, seconds: float) -> None:
        """Count one more image; if two threads do at once, one may be lost, which is fine."""
        average_s = self.average_s or seconds
        counted_s = min(seconds, self.MAX_FACTOR * average_s)
        self.average_s = average_s + self.WEIGHT * (counted_s - average_s)


class Decoder:
    """Decodes, resizes and crops; the libraries that do the work release the interpreter lock."""

    def __init__(self, config: Preprocess, limits: ImageLimits, num_threads: int) -> None:
        self._config, self._limits = config, limits
        cv2.setNumThreads(1)  # each image has its thread; OpenCV's own would spin beside them
        self._num_threads, self._time = num_threads, ImageTime()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    async def decode(
        self, image: classifier_pb2.Image, limits: ImageLimits | None = None
    ) -> tuple[Prepared, float]:
        """The network's input and the seconds it took; without `limits`, those for clients hold.

        Raises ImageError. An image cancelled while it waits for a thread is never decoded.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, self._timed, image, limits or self._limits
        )

    def predict(self, num_images: int) -> float:
        """Seconds to decode `num_images` from now, by the average of the latest ones."""
        return num_images * self._time.average_s / self._num_threads

    def close(self) -> None:
        """Wait for the images being decoded, then free the threads."""
        self._pool.shutdown()

    def _timed(self, image: classifier_pb2.Image, limits: ImageLimits) -> tuple[Prepared, float]:
        started_at = time.monotonic()
        try:
            prepared = input_from_image(image, self._config, limits)
        finally:  # an image that fails, or whose caller has left, takes time too
            seconds = time.monotonic() - started_at
            self._time.learn(seconds)
        return prepared, seconds


def input_from_image(
    image: classifier_pb2.Image, config: Preprocess, limits: ImageLimits
) -> Prepared:
    """An image as sent -> the network's input. Raises ImageError."""
    source = image.WhichOneof("source")
    if source == "encoded":
        return prepare(image.encoded, config, limits)
    if source == "pixels":
        return prepare(_array_from_pixels(image.pixels, limits), config)
    raise ImageError(ImageReason.EMPTY, "neither encoded nor pixels", "one of them")


def _array_from_pixels(pixels: classifier_pb2.Pixels, limits: ImageLimits) -> UInt8Array:
    height, width = pixels.height, pixels.width
    if height * width > limits.max_pixels:
        got, expected = f"{width}x{height} pixels", f"at most {limits.max_pixels / 1e6:g} million"
        raise ImageError(ImageReason.TOO_MANY_PIXELS, got, expected)
    num_bytes = 3 * height * width
    if not num_bytes or len(pixels.rgb) != num_bytes:
        got = f"{len(pixels.rgb)} bytes for {width}x{height} pixels"
        raise ImageError(ImageReason.BAD_PIXELS, got, "3 x height x width, not 0")
    return np.frombuffer(pixels.rgb, np.uint8).reshape(height, width, 3)
