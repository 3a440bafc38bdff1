"""Copies of a picture: found after saving it again, and never among different pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from irv2.data.copies import NEAR_BITS, group_copies
from irv2.data.dataset import find_images
from irv2.data.facts import Facts, look_at


def scene(seed: int) -> Image.Image:
    """A picture with structure at all scales, 400x300."""
    noise = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    coarse = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(20))
    pixels = np.asarray(coarse).astype(np.float32)
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def groups_in(folder: Path) -> dict[str, int]:
    images = find_images(folder)
    [facts] = look_at([images])
    return dict(zip(images.files, group_copies(facts).tolist(), strict=True))


@pytest.mark.parametrize(
    "save",
    [
        lambda image, path: image.save(path, quality=60),
        lambda image, path: image.resize((200, 150)).save(path),
        lambda image, path: image.resize((224, 168)).save(path, quality=75),
    ],
)
def test_a_picture_saved_again_is_a_copy(
    tmp_path: Path, save: Callable[[Image.Image, Path], None]
) -> None:
    for seed in range(6):
        scene(seed).save(tmp_path / f"{seed}.png")
    save(scene(3), tmp_path / "again.jpg")
    groups = groups_in(tmp_path)
    assert groups["again.jpg"] == groups["3.png"]
    assert len(set(groups.values())) == 6


def test_plain_areas_of_different_colours_are_no_copies(tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200)), ("black", (0, 0, 0))):
        Image.new("RGB", (50, 50), colour).save(tmp_path / f"{name}.png")
    Image.new("RGB", (50, 50), (0, 0, 200)).save(tmp_path / "blue.bmp")
    groups = groups_in(tmp_path)
    assert groups["blue.bmp"] == groups["blue.png"]
    assert len(set(groups.values())) == 3


def test_different_digits_are_no_copies(sample):
    images = find_images(sample / "val")
    [facts] = look_at([images])
    assert len(set(group_copies(facts).tolist())) == len(images) == 360


def test_every_pair_within_the_limit_is_found_wherever_it_differs():
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    near = looks.copy()
    for row in near:
        bits = np.unpackbits(row)
        bits[rng.choice(256, NEAR_BITS, replace=False)] ^= 1
        row[:] = np.packbits(bits)
    everything = [*looks, *near]
    facts = [Facts(sha256=str(i), look=look.tobytes()) for i, look in enumerate(everything)]
    groups = group_copies(facts)
    assert (groups[:300] == groups[300:]).all()
    assert len(set(groups.tolist())) == 300


def test_unreadable_files_are_nobodys_copies():
    facts = [Facts(problem="missing"), Facts(problem="missing"), Facts("a", "half"), Facts("b")]
    assert len(set(group_copies(facts).tolist())) == 4
