"""Images of the wire to the network's input."""

import asyncio

import numpy as np
import pytest
import simplejpeg

from irv2.errors import ImageError, ImageReason
from irv2.images.decode import ImageLimits
from irv2.images.preprocess import Preprocess, preprocess, resize_and_crop
from irv2.serve.pipeline.decode_pool import Decoder, ImageTime, input_from_image
from irv2.v1.classifier_pb2 import Image, Pixels

CONFIG = Preprocess(resize=75, crop=75)
LIMITS = ImageLimits(max_bytes=50_000, max_pixels=20_000)
NOISE = np.random.default_rng(0).integers(0, 256, (100, 90, 3), np.uint8)
JPEG = simplejpeg.encode_jpeg(NOISE)


def test_a_file_is_prepared_as_in_the_evaluation():
    expected = preprocess(JPEG, CONFIG)
    np.testing.assert_array_equal(
        input_from_image(Image(encoded=JPEG), CONFIG, LIMITS).image_hwc, expected
    )


def test_pixels_are_resized_and_cropped_like_a_file():
    image = Image(pixels=Pixels(rgb=NOISE.tobytes(), height=100, width=90))
    expected = resize_and_crop(NOISE, CONFIG)
    np.testing.assert_array_equal(input_from_image(image, CONFIG, LIMITS).image_hwc, expected)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image(), ImageReason.EMPTY),
        (Image(encoded=b""), ImageReason.EMPTY),
        (Image(encoded=b"hello"), ImageReason.NOT_AN_IMAGE),
        (Image(encoded=b"%PDF-1.7 ..."), ImageReason.UNSUPPORTED),
        (Image(encoded=JPEG[: len(JPEG) // 2]), ImageReason.TRUNCATED),
        (Image(encoded=bytes(50_001)), ImageReason.TOO_LARGE),
        (
            Image(encoded=simplejpeg.encode_jpeg(np.zeros((200, 200, 3), np.uint8))),
            ImageReason.TOO_MANY_PIXELS,
        ),
        (Image(pixels=Pixels()), ImageReason.BAD_PIXELS),
        (Image(pixels=Pixels(rgb=bytes(26), height=3, width=3)), ImageReason.BAD_PIXELS),
        (Image(pixels=Pixels(rgb=bytes(28), height=3, width=3)), ImageReason.BAD_PIXELS),
        (Image(pixels=Pixels(rgb=b"", height=0, width=7)), ImageReason.BAD_PIXELS),
        (
            Image(pixels=Pixels(rgb=b"", height=2**32 - 1, width=2**32 - 1)),
            ImageReason.TOO_MANY_PIXELS,
        ),
    ],
)
def test_each_kind_of_bad_image_has_its_reason(image, reason):
    with pytest.raises(ImageError) as refused:
        input_from_image(image, CONFIG, LIMITS)
    assert refused.value.reason is reason


def test_the_pool_tells_how_long_an_image_took():
    async def scenario():
        decoder = Decoder(CONFIG, LIMITS, num_threads=1)
        (image_hwc, _), seconds = await decoder.decode(Image(encoded=JPEG))
        decoder.close()
        assert image_hwc.shape == (75, 75, 3)
        assert 0 < seconds < 5
        assert decoder.predict(6) == pytest.approx(6 * seconds)

    asyncio.run(scenario())


def test_images_that_fail_count_in_the_time_that_is_predicted():
    async def scenario():
        decoder = Decoder(CONFIG, LIMITS, num_threads=2)
        with pytest.raises(ImageError):
            await decoder.decode(Image(encoded=b"hello"))
        decoder.close()
        assert 0 < decoder.predict(1) < 1

    asyncio.run(scenario())


def test_one_slow_image_is_not_believed_and_twenty_are():
    time = ImageTime()
    time.learn(0.001)
    time.learn(60.0)
    assert time.average_s == pytest.approx(0.001 * 1.3)
    for _ in range(60):
        time.learn(0.1)
    assert time.average_s == pytest.approx(0.1, rel=0.05)
