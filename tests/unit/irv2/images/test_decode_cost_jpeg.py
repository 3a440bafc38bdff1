"""Scans are counted as a decoder would meet them, whatever else a file holds."""

import io
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from irv2.errors import ImageError, ImageReason
from irv2.images.containers import MAX_SEGMENTS
from irv2.images.decode import ImageLimits, decode
from irv2.images.decode_cost import num_scans

NOISE = np.random.default_rng(0).integers(0, 256, (100, 90, 3), np.uint8)
BASELINE = simplejpeg.encode_jpeg(NOISE)
SCAN, END = b"\xff\xda", b"\xff\xd9"


def progressive(image: np.ndarray = NOISE, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", progressive=True, **options)
    return file.getvalue()


def with_scans(jpeg: bytes, num_more: int) -> bytes:
    """The last scan, repeated."""
    return jpeg[:-2] + jpeg[jpeg.rindex(SCAN) : -2] * num_more + jpeg[-2:]


def segment(kind: int, payload: bytes) -> bytes:
    return bytes([0xFF, kind]) + (len(payload) + 2).to_bytes(2, "big") + payload


@pytest.mark.parametrize(
    ("jpeg", "scans"),
    [
        (BASELINE, 1),
        (progressive(), 10),
        (progressive(NOISE[:, :, 0]), 6),
        (with_scans(progressive(), 50), 60),
        # A scan's marker in data is no scan, and the end's is no end.
        (BASELINE[:2] + segment(0xE1, 40 * SCAN + END) + BASELINE[2:], 1),
        (progressive()[:2] + segment(0xFE, 40 * SCAN + END) + progressive()[2:], 10),
        (progressive() + 1000 * SCAN, 10),  # a film after the photograph, as telephones append
        # TEM and restarts have no length: nothing hides behind one.
        (with_scans(progressive(), 5).replace(SCAN, b"\xff\x01" + SCAN), 15),
        (BASELINE[:100], 0),
        (b"\xff\xd8\xff", 0),
    ],
)
def test_scans_are_counted(jpeg, scans):
    assert num_scans(jpeg, 100) == scans
    assert num_scans(jpeg, 3) == min(scans, 4), "it is left as soon as the limit is passed"


def test_a_small_file_with_very_many_scans_is_refused_at_once():
    grey = np.full((2000, 2000, 3), 128, np.uint8)
    bomb = with_scans(progressive(grey), 20_000)
    started_at = time.monotonic()
    with pytest.raises(ImageError) as refused:
        decode(bomb)
    assert refused.value.reason is ImageReason.TOO_MANY_SCANS
    assert time.monotonic() - started_at < 2.0  # decoding it takes minutes
    assert len(bomb) < 1_000_000


def test_restarts_in_the_data_of_a_scan_are_no_segments():
    restarts = b"".join(bytes([0x55, 0xFF, 0xD0 + n % 8]) for n in range(100_000))
    jpeg = progressive()
    assert num_scans(jpeg[:-2] + restarts + jpeg[-2:], 32) == 10


def test_a_file_of_very_many_segments_is_refused():
    comment = segment(0xFE, b"")
    assert num_scans(BASELINE[:2] + comment * (MAX_SEGMENTS - 20) + BASELINE[2:], 32) == 1
    with pytest.raises(ImageError, match="more than 2000 marker segments") as refused:
        decode(BASELINE[:2] + comment * MAX_SEGMENTS + BASELINE[2:])
    assert refused.value.reason is ImageReason.UNSUPPORTED


def test_the_limit_on_scans_is_the_one_that_is_given():
    decode(progressive(), ImageLimits(max_scans=10))
    with pytest.raises(ImageError):
        decode(progressive(), ImageLimits(max_scans=9))
