"""Versions that fit, and the ranges of irv2's own metadata."""

import pytest

from irv2.doctor import packages
from irv2.doctor.finding import note, ok, problem
from irv2.doctor.packages import Package, check_packages, read_packages


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


def test_what_is_missing_is_told_by_what_it_is_for(monkeypatch):
    monkeypatch.setattr(packages, "version_of", {"onnxruntime": "1.32.0"}.get)
    asked_for = [
        Package("numpy", ">=2,<3", "", "2.4"),
        Package("msgspec", ">=0.19,<1", "", ""),
        Package("onnxruntime", ">=1.27,<2", "cpu", "1.32.0"),
        Package("cuda-python", ">=13,<14", "gpu", "13.4"),
        Package("tensorrt", ">=11,<12", "gpu", ""),
        Package("ray", ">=2.50,<3", "ray", ""),
    ]
    [_, *found] = check_packages(asked_for)
    install = 'pip install "irv2[gpu]" if you need it'
    adds = 'pip install "irv2[ray]" adds one; docs/installing.md says what each is for'
    assert found == [
        problem(
            "packages",
            "msgspec is missing; expected >=0.19,<1",
            'pip install "msgspec>=0.19,<1"',
        ),
        ok("extra cpu", "onnxruntime 1.32.0"),
        note(
            "extra gpu",
            "lacks tensorrt; has cuda-python 13.4",
            f"pip uninstall onnxruntime first, then {install}",
        ),
        note("extras", "not installed: ray", adds),
    ]


def test_without_metadata_nothing_is_compared():
    [_, found] = check_packages([])
    assert found.level == "note"
    assert "not installed" in found.found
