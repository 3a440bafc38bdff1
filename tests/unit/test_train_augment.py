import numpy as np
import pytest
import torch

from irv2.preprocess import Preprocess, resize_and_crop
from train.augment import apply_color, color_matrix, random_shift, random_sized_crop

CONFIG = Preprocess()


def picture(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def step_by_step(image_hwc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The original's chain on floats, one operation after the other, nothing clamped."""
    x = image_hwc / 255.0
    for kind in rng.permutation(["brightness", "contrast", "saturation"]):
        alpha = 1 + rng.uniform(-0.4, 0.4)
        grey = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
        if kind == "brightness":
            other = np.zeros_like(x)
        elif kind == "contrast":
            other = np.full_like(x, grey.mean())
        else:
            other = np.repeat(grey[..., None], 3, axis=2)
        x = alpha * x + (1 - alpha) * other
    alpha = rng.normal(0, 0.1, 3)
    values = [0.2175, 0.0188, 0.0045]
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    for channel in range(3):
        x[..., channel] += sum(vectors[channel][k] * alpha[k] * values[k] for k in range(3))
    return (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


@pytest.mark.parametrize("seed", range(12))
def test_one_matrix_is_the_whole_colour_chain_in_any_order(seed):
    image = picture(seed=seed)
    matrix = color_matrix(image, CONFIG, np.random.default_rng(seed))
    pixels = torch.from_numpy(image)[None]
    colored = apply_color(pixels, torch.from_numpy(matrix)[None], torch.tensor([False]))
    expected = step_by_step(image, np.random.default_rng(seed)).transpose(2, 0, 1)
    # float32 of values up to about 5 against float64
    np.testing.assert_allclose(colored[0].numpy(), expected, atol=5e-6)


def test_flips_mirror_only_the_images_that_ask_for_it():
    images = torch.from_numpy(np.stack([picture(20, 20, seed) for seed in range(3)]))
    matrices = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]]).repeat(3, 1, 1)
    result = apply_color(images, matrices, torch.tensor([False, True, False]))
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = images.permute(0, 3, 1, 2).float()
    torch.testing.assert_close(result[0], expected[0])
    torch.testing.assert_close(result[1], expected[1].flip(-1))


def test_crops_cover_8_to_100_percent_of_the_area_and_aspects_from_3_4_to_4_3():
    # A picture whose red is its column and whose green is its row: the crop tells where it was.
    side = 240
    rows, columns = np.mgrid[0:side, 0:side].astype(np.uint8)
    image = np.dstack([columns, rows, rows])
    areas, aspects = [], []
    for seed in range(2000):
        crop = random_sized_crop(image, 75, "torch7-bicubic", np.random.default_rng(seed))
        assert crop.shape == (75, 75, 3)
        width = int(crop[0, -1, 0]) - int(crop[0, 0, 0]) + 1  # corners are aligned
        height = int(crop[-1, 0, 1]) - int(crop[0, 0, 1]) + 1
        areas.append(width * height / side**2)
        aspects.append(width / height)
    assert 0.075 < min(areas) < 0.1
    assert 0.9 < max(areas) <= 1.0
    assert 0.74 < min(aspects) < 0.78
    assert 1.29 < max(aspects) < 1.36
    # uniform area but for the few large crops that did not fit: mean near 0.54, a bit below
    assert 0.48 < np.mean(areas) < 0.55
    assert abs(np.mean(np.log(aspects))) < 0.02  # swapped with probability 1/2, so symmetric


def test_a_picture_too_narrow_for_any_crop_gets_its_centre():
    image = picture(20, 400)
    crop = random_sized_crop(image, 75, "torch7-bicubic", np.random.default_rng(3))
    centre = resize_and_crop(image, Preprocess(resize=75, crop=75))
    np.testing.assert_array_equal(crop, centre)


def test_shifts_reach_both_ways_and_repeat_the_edge():
    image = picture(16, 16)
    seen = set()
    for seed in range(300):
        moved = random_shift(image, 1 / 8, np.random.default_rng(seed))
        matches = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.array_equal(moved[4:12, 4:12], image[4 - dy : 12 - dy, 4 - dx : 12 - dx])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
        if matches[0] == (2, 0):
            np.testing.assert_array_equal(moved[0], image[0])
            np.testing.assert_array_equal(moved[1], image[0])
    assert len(seen) == 25
