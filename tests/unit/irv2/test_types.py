"""Images that users pass in."""

from pathlib import Path

import numpy as np
import pytest

from irv2.errors import ImageError
from irv2.types import as_images, check_rgb

PICTURE = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    "lone",
    [
        "a.jpg",
        Path("a.jpg"),
        b"encoded",
        bytearray(b"encoded"),
        memoryview(b"encoded"),
        PICTURE,
        PICTURE[:, :, 0],
        PICTURE.astype(np.float32),
        PICTURE.ravel(),
        np.uint8(0),
        None,
        5,
    ],
)
def test_a_lone_image_is_one_whatever_it_is(lone):
    assert [image is lone for image in as_images(lone)] == [True]


def test_an_open_file_is_one_image_and_not_its_lines(tmp_path):
    (tmp_path / "lines").write_text("1\n2\n")
    with (tmp_path / "lines").open("rb") as file:
        assert list(as_images(file)) == [file]


@pytest.mark.parametrize(
    "images",
    [
        ["a.jpg", b"encoded", PICTURE],
        ("a.jpg", "b.jpg"),
        {"a.jpg": 1, "b.jpg": 2},
        np.array(["a.jpg", "b.jpg"]),
        np.array([Path("a.jpg"), None]),
        np.zeros((2, 4, 5, 3), np.uint8),
        [],
    ],
    ids=str,
)
def test_a_collection_stays_what_it_is(images):
    assert as_images(images) is images


def test_a_generator_is_not_begun():
    images = (image for image in ["a.jpg"])
    assert as_images(images) is images
    assert list(images) == ["a.jpg"]


@pytest.mark.parametrize(
    "image", [None, 5, bytearray(b"x"), PICTURE[:, :, 0], PICTURE[:0]], ids=str
)
def test_what_is_no_image_is_told_so(image):
    with pytest.raises(ImageError, match=r"expected a path, bytes or uint8 RGB \(H, W, 3\)$"):
        check_rgb(image)
