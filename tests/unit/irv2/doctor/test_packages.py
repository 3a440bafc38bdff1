"""Versions that fit, and the ranges of irv2's own metadata."""

import pytest

from irv2.doctor.packages import Package, read_packages


@pytest.mark.parametrize(
    ("version", "range_", "fits"),
    [
        ("6.31.1", ">=6.31.1,<8", True),
        ("6.31.0", ">=6.31.1,<8", False),
        ("8.0.0", ">=6.31.1,<8", False),
        ("7.99", ">=6.31.1,<8", True),
        ("2.13.0+cpu", "<2.14,>=2.13", True),
        ("2.0", ">=2,<3", True),
        ("2", ">=2.0,<3", True),
        ("10.1", ">=9", True),
        ("3.0rc1", ">=2,<3", False),
        ("1", "", True),
    ],
)
def test_a_version_fits_its_range(version, range_, fits):
    assert Package("any", range_, "", version).fits == fits


def test_every_package_that_irv2_asks_for_is_read():
    packages = {(each.name, each.extra): each for each in read_packages()}
    assert packages["numpy", ""].range in (">=2,<3", "<3,>=2")
    assert packages["onnxruntime-gpu", "gpu"].module == "onnxruntime"
    assert packages["opencv-python-headless", ""].module == "cv2"
    assert not any(extra == "dev" for _, extra in packages)
