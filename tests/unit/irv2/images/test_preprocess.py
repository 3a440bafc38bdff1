"""Resampling and cropping against slow references written here, and the identity."""

import io
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from irv2.errors import ImageError, ImageReason, InputError, UsageError
from irv2.images.decode import decode
from irv2.images.preprocess import (
    Preprocess,
    center_window,
    prepare,
    preprocess,
    resize_and_crop,
    resized_shape,
)
from irv2.images.resample import RESAMPLERS, Window


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise: neighbours differ by up to 255, so that taps overshoot and every weight shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (328, 437)),  # 437.33
        ((500, 375), (437, 328)),
        ((328, 1000), (328, 1000)),  # the shorter side is there: left alone
        ((1000, 328), (1000, 328)),
        ((328, 328), (328, 328)),
        ((100, 100), (328, 328)),
        ((299, 300), (328, 329)),  # 329.1
        ((333, 499), (328, 491)),  # 491.51 is truncated, not rounded
    ],
)  # fmt: skip
def test_the_longer_side_is_truncated(size, expected):
    assert resized_shape(*size, 328) == expected


def test_the_longer_side_is_never_off_by_more_than_a_rounding_of_the_exact_ratio():
    for height in range(1, 400, 7):
        for width in range(1, 700, 13):
            found = resized_shape(height, width, 328)
            exact = Fraction(max(height, width), min(height, width)) * 328
            assert min(found) == 328
            # Doubles may fall just under a whole number, as they did in the original's Lua.
            assert max(found) in {math.floor(exact), math.ceil(exact) - 1}


@pytest.mark.parametrize(
    ("side", "offset"), [(299, 0), (300, 1), (301, 1), (302, 2), (328, 15), (437, 69)]
)
def test_the_crop_begins_at_half_the_rest_rounded_up(side, offset):
    assert center_window(side, 299, 299) == (offset, 0, 299, 299)
    assert center_window(299, side, 299) == (0, offset, 299, 299)


@pytest.mark.parametrize("name", RESAMPLERS)
def test_an_image_whose_shorter_side_fits_is_only_cropped(name):
    config = Preprocess(resize=40, crop=31, resampling=name)
    image = pixels(40, 57)
    np.testing.assert_array_equal(resize_and_crop(image, config), image[5:36, 13:44])


@pytest.mark.parametrize("name", RESAMPLERS)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (1, 60), (60, 1), (2, 3), (100, 80), (299, 299), (700, 333), (40, 900)]
)  # fmt: skip
def test_any_size_becomes_the_square_of_the_full_resize_cropped(name, size):
    config = Preprocess(resampling=name)
    image = pixels(*size)
    found = resize_and_crop(image, config)
    assert (found.shape, found.dtype) == ((299, 299, 3), np.uint8)
    assert found.flags["C_CONTIGUOUS"]
    height, width = resized_shape(*size, 328)
    whole = RESAMPLERS[name](image, height, width, Window(0, 0, height, width))
    top, left = math.ceil((height - 299) / 2), math.ceil((width - 299) / 2)
    np.testing.assert_array_equal(found, whole[top : top + 299, left : left + 299])


@pytest.mark.parametrize("name", RESAMPLERS)
@pytest.mark.parametrize("size", [(31, 31), (40, 57), (500, 375)])
def test_pixels_are_written_straight_into_a_batch(name, size):
    config = Preprocess(resize=31, crop=31, resampling=name)  # (31, 31): the window is the whole
    image = pixels(*size)
    batch = np.zeros((3, 31, 31, 3), np.uint8)
    found = resize_and_crop(image, config, out=batch[1])
    assert found.base is batch
    np.testing.assert_array_equal(batch[1], resize_and_crop(image, config))
    assert not batch[[0, 2]].any()


def test_a_sliver_that_would_fill_the_memory_is_refused():
    with pytest.raises(ImageError, match="1x3000 pixels become 328x984000") as caught:
        resize_and_crop(pixels(3000, 1), Preprocess())
    assert caught.value.reason is ImageReason.TOO_MANY_PIXELS


def test_preprocess_decodes_then_resizes_and_crops():
    header = b"P6 50 40 255\n"
    image = pixels(40, 50)
    encoded = header + image.tobytes()
    config = Preprocess(resize=20, crop=16)
    np.testing.assert_array_equal(decode(encoded), image)
    np.testing.assert_array_equal(preprocess(encoded, config), resize_and_crop(image, config))


CHANGES = [
    {"resize": 329},
    {"crop": 298},
    {"resampling": "opencv-cubic"},
    {"mean": (0.485, 0.456, 0.407)},
    {"std": (0.229, 0.225, 0.224)},
    {"orientation": "exif"},
]


def test_the_identity_changes_with_every_parameter():
    hashes = {Preprocess(**changes).sha256 for changes in [{}, *CHANGES]}
    assert len(hashes) == 1 + len(CHANGES)
    assert Preprocess().sha256 == Preprocess(**{"crop": 299}).sha256


def test_the_usual_orientation_is_no_part_of_the_older_identity():
    # Of every checkpoint and bundle made before there was a choice.
    sha256 = "cf04312f4d89cd5cd6af4f26ffc63939c933e878219153672c8a5bef0c3e3dac"
    assert Preprocess(orientation="stored").sha256 == sha256
    assert "orientation" not in Preprocess().to_json()
    stated = {**Preprocess().to_json(), "orientation": "stored"}
    assert Preprocess.from_json(stated, "bundle.json") == Preprocess()


def test_a_picture_is_turned_only_for_a_model_that_wants_it_and_it_is_said_otherwise():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels(40, 57)).save(file, "PNG", exif=exif)
    stored, upright = (
        Preprocess(resize=40, crop=40, orientation=kind) for kind in ("stored", "exif")
    )
    as_stored, as_turned = prepare(file.getvalue(), stored), prepare(file.getvalue(), upright)
    assert (as_stored.orientation, as_turned.orientation) == (6, 0)
    np.testing.assert_array_equal(np.rot90(as_stored.image_hwc, -1), as_turned.image_hwc)
    assert prepare(pixels(40, 57), stored).orientation == 0


@pytest.mark.parametrize("changes", [{}, *CHANGES])
def test_the_identity_survives_json(changes):
    config = Preprocess(**changes)
    read = Preprocess.from_json(json.loads(json.dumps(config.to_json())), "bundle.json")
    assert read == config
    assert read.sha256 == config.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "preprocessing hash 000000000000"),
        ({"resize": 400}, "preprocessing hash"),
        ({"resampling": "lanczos"}, "not understood .*lanczos"),
        ({"resampling": ["torch7-bicubic"]}, "not understood"),
        ({"crop": 0}, "not understood .*crop"),
        ({"crop": "299"}, "not understood"),
        ({"mean": [0.5, 0.5]}, "not understood .*mean"),
        ({"std": None}, "not understood"),
        ({"rotate": 90}, "not understood .*rotate"),
        ({"sha256": None}, "preprocessing hash"),
        ({"orientation": "exif"}, "preprocessing hash"),
        ({"orientation": "upright"}, "not understood .*upright"),
    ],
)
def test_an_identity_that_we_cannot_honour_is_refused(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        Preprocess.from_json(Preprocess().to_json() | changes, "model.onnx")
    assert str(caught.value).startswith("model.onnx: ")


def test_a_missing_hash_is_refused():
    fields = Preprocess().to_json()
    del fields["sha256"]
    with pytest.raises(InputError, match="sha256"):
        Preprocess.from_json(fields, "model.onnx")


@pytest.mark.parametrize("changes", [{"resampling": "bicubic"}, {"crop": 329}, {"std": (1.0,)}])
def test_parameters_that_make_no_sense_are_a_usage_error(changes):
    with pytest.raises(UsageError):
        Preprocess(**changes)
