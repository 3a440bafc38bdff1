"""Every format and depth gives the right pixels or a refusal; docs/pictures.md has the table."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import PIL
import pytest
from pictures import PICTURES, Picture
from PIL import Image
from project import ROOT

from irv2.errors import ImageError, ImageReason
from irv2.images.decode import decode

PAGE = (ROOT / "docs" / "pictures.md").read_text()
VERSIONS = f"Pillow {PIL.__version__} and OpenCV {cv2.__version__}"


def by_pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def by_opencv(encoded: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    return image[:, :, ::-1]


def is_like(image: np.ndarray, expected: np.ndarray | None, tolerance: int) -> bool:
    if expected is None or image.shape != expected.shape:
        return False
    return bool(np.abs(image.astype(int) - expected).max() <= tolerance)


def verdict(decoder: Callable[[bytes], np.ndarray], picture: Picture) -> str:
    try:
        image = decoder(picture.encoded)
    except Exception:
        return "refused"
    if is_like(image, picture.expected, picture.tolerance):
        return "right"
    return "no alpha" if is_like(image, picture.opaque, picture.tolerance) else "wrong"


def row(name: str) -> str:
    found = [verdict(decoder, PICTURES[name]) for decoder in (decode, by_pillow, by_opencv)]
    return f"| {' | '.join([name, *found])} |"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_right_or_refused_and_the_table_says_so(name):
    found = row(name)
    if verdict(decode, PICTURES[name]) != "right":
        with pytest.raises(ImageError, match=r"^image: [^\n]+; expected [^\n]+$") as refused:
            decode(PICTURES[name].encoded)
        assert refused.value.reason is ImageReason.UNSUPPORTED
    if VERSIONS in PAGE:
        assert found in PAGE.splitlines()
    else:  # other versions read other files
        assert found.rsplit("|", 3)[0] in PAGE


def test_the_table_has_no_other_rows():
    rows = [
        line
        for line in PAGE.splitlines()
        if line.endswith((" right |", " refused |", " alpha |", " wrong |"))
    ]
    assert {line.split(" | ")[0].removeprefix("| ") for line in rows} == set(PICTURES)
