import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm, uniform

from irv2.images.preprocess import Preprocess, resize_and_crop
from irv2.train.data.augment import (
    ColorDraw,
    apply_color,
    color_matrix,
    color_on_cpu,
    color_on_device,
    draw_color,
    draw_crop,
    erase,
    random_shift,
    random_sized_crop,
)

CONFIG = Preprocess()


def picture(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def step_by_step(image_hwc: np.ndarray, draw: ColorDraw) -> np.ndarray:
    """The original's chain on floats, one operation after the other, nothing clamped."""
    x = image_hwc / 255.0
    for kind, alpha in zip(draw.order, draw.alphas, strict=True):
        grey = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
        other = [np.zeros_like(x), np.full_like(x, grey.mean()), np.dstack([grey] * 3)][kind]
        x = alpha * x + (1 - alpha) * other
    values = [0.2175, 0.0188, 0.0045]
    vectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    for channel in range(3):
        x[..., channel] += sum(vectors[channel][k] * draw.lighting[k] * values[k] for k in range(3))
    return (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("alphas", [(1.0, 1.0, 1.0), (0.6, 1.4, 0.75), (1.4, 0.6, 1.1)])
def test_one_matrix_is_the_whole_colour_chain_in_any_order(order, alphas):
    draw = ColorDraw(order, alphas, (0.13, -0.2, 0.05))
    image = picture(seed=sum(order[:2]))
    matrix = color_matrix(image, draw, CONFIG)
    pixels = torch.from_numpy(image)[None]
    colored = apply_color(pixels, torch.from_numpy(matrix)[None], torch.tensor([False]))
    expected = step_by_step(image, draw).transpose(2, 0, 1)
    # float32 of values up to about 5 against float64
    np.testing.assert_allclose(colored[0].numpy(), expected, atol=5e-6)


def test_cpu_and_device_colour_alike():
    images = torch.from_numpy(np.stack([picture(30, 30, seed) for seed in range(4)]))
    rng = np.random.default_rng(0)
    matrices = [color_matrix(image.numpy(), draw_color(rng), CONFIG) for image in images]
    batch = images, torch.from_numpy(np.stack(matrices)), torch.tensor([True, False, True, False])
    # Two orders of summing three products and a constant in float32
    torch.testing.assert_close(color_on_cpu(*batch), color_on_device(*batch), atol=2e-6, rtol=0)


def test_the_matrix_of_a_fixed_draw_is_the_golden_one():
    # Worked by hand: contrast 0.5 keeps half of each pixel and adds half of the mean grey
    # m = (0.299 x 51 + 0.587 x 102 + 0.114 x 204) / 255 = 0.3858; brightness doubles;
    # saturation 1 changes nothing. So y = x + m, in units of 255.
    image = np.full((4, 6, 3), (51, 102, 204), np.uint8)
    draw = ColorDraw((1, 0, 2), (0.5, 2.0, 1.0), (0.0, 0.0, 0.0))
    plain = Preprocess(mean=(0, 0, 0), std=(1, 1, 1))
    constant = np.full((3, 1), 0.3858)
    golden = np.hstack([np.eye(3) / 255, constant])
    np.testing.assert_allclose(color_matrix(image, draw, plain), golden, rtol=1e-6, atol=1e-9)
    # Lighting alone: the first component, weight 1, moves each channel by 0.2175 x its eigenvector.
    lit = color_matrix(image, ColorDraw((0, 1, 2), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)), plain)
    np.testing.assert_allclose(
        lit[:, 3], [-0.5675 * 0.2175, -0.5808 * 0.2175, -0.5836 * 0.2175], rtol=1e-6
    )


def test_jitter_and_lighting_are_drawn_as_the_original_draws_them():
    rng = np.random.default_rng(0)
    draws = [draw_color(rng) for _ in range(6000)]
    orders = Counter(draw.order for draw in draws)
    assert chisquare(list(orders.values())).pvalue > 0.001  # six orders, equally often
    assert len(orders) == 6
    alphas = np.array([draw.alphas for draw in draws]).ravel()
    assert kstest(alphas, uniform(0.6, 0.8).cdf).pvalue > 0.001
    lighting = np.array([draw.lighting for draw in draws]).ravel()
    assert kstest(lighting, norm(0, 0.1).cdf).pvalue > 0.001


def test_flips_mirror_only_the_images_that_ask_for_it():
    images = torch.from_numpy(np.stack([picture(20, 20, seed) for seed in range(3)]))
    matrices = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]]).repeat(3, 1, 1)
    result = apply_color(images, matrices, torch.tensor([False, True, False]))
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = images.permute(0, 3, 1, 2).float()
    torch.testing.assert_close(result[0], expected[0])
    torch.testing.assert_close(result[1], expected[1].flip(-1))


class Script:
    """A generator whose uniform numbers are written down; lower and upper limits apply to them."""

    def __init__(self, *fractions: float) -> None:
        self._fractions = iter(fractions)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._fractions)

    def random(self) -> float:
        return next(self._fractions)

    def integers(self, low: int, high: int, endpoint: bool) -> int:
        assert endpoint
        return low + int(next(self._fractions) * (high - low + 1))


@pytest.mark.parametrize(
    ("fractions", "box"),
    [
        # area 0.54 x 375 x 500 = 101250, aspect 25/24: 324.76 x 311.77, in the middle of the rest
        ((0.5, 0.5, 0.9, 0.5, 0.5), (32, 88, 312, 325)),
        ((0.5, 0.5, 0.1, 0.5, 0.5), (25, 94, 325, 312)),  # swapped
        # area 0.08 = 15000, aspect 3/4: 106.07 x 141.42, at the two ends
        ((0.0, 0.0, 0.9, 0.0, 0.0), (0, 0, 141, 106)),
        ((0.0, 0.0, 0.9, 0.999, 0.999), (234, 394, 141, 106)),
        # the whole area never fits in this picture: the second try counts
        ((1.0, 0.5, 0.9, 0.5, 0.5, 0.9, 0.5, 0.5), (32, 88, 312, 325)),
        ((1.0, 0.5, 0.9) * 10, None),
    ],
)
def test_the_crop_of_fixed_numbers_is_the_golden_one(fractions, box):
    assert draw_crop(375, 500, Script(*fractions)) == box


def test_crops_have_uniform_areas_and_aspects_swapped_half_of_the_time():
    # On a large square all but the largest crops fit at the first try.
    rng = np.random.default_rng(0)
    side = 4000  # rounding to whole pixels is far below what the test can see
    crops = [draw_crop(side, side, rng) for _ in range(20_000)]
    areas = np.array([crop.height * crop.width / side**2 for crop in crops])
    assert areas.min() >= 0.0799
    assert areas.max() <= 1.0
    # An area under 3/4 always fits; so far all areas are equally likely.
    small = areas < 0.75
    assert kstest(areas[small], uniform(0.08, 0.67).cdf).pvalue > 0.001
    aspects = np.array([crop.width / crop.height for crop in crops])[small]

    def cdf(aspect: np.ndarray) -> np.ndarray:
        """Of a number uniform in 3/4..4/3 and its reciprocal, each half of the time."""
        straight = uniform(3 / 4, 4 / 3 - 3 / 4)
        return (straight.cdf(aspect) + 1 - straight.cdf(1 / aspect)) / 2

    assert kstest(aspects, cdf).pvalue > 0.001
    centres = np.array([crop.top / max(side - crop.height, 1) for crop in crops])
    assert kstest(centres[small], uniform(0, 1).cdf).pvalue > 0.001


def test_no_crop_is_smaller_than_asked_for():
    rng = np.random.default_rng(0)
    crops = [draw_crop(1000, 1000, rng, min_area=0.5) for _ in range(2_000)]
    areas = [crop.height * crop.width / 1000**2 for crop in crops if crop]
    assert min(areas) == pytest.approx(0.5, abs=0.01)


def test_one_random_rectangle_of_the_paper_s_sizes_is_erased():
    areas, corners = [], []
    for seed in range(500):
        image = np.zeros((100, 100, 3), np.uint8)
        erase(image, np.random.default_rng(seed))
        rows, columns = image.any(axis=(1, 2)).nonzero()[0], image.any(axis=(0, 2)).nonzero()[0]
        part = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (part.any(axis=2)).mean() > 0.99  # of 256 values each, all three are rarely 0
        areas.append(part.shape[0] * part.shape[1] / 100**2)
        corners.append((rows[0] == 0, columns[-1] == 99))
    assert (min(areas), max(areas)) == pytest.approx((0.02, 0.4), abs=0.01)
    assert np.mean(areas) == pytest.approx(0.21, abs=0.02)
    assert np.mean(corners, axis=0).min() > 0.005  # the edges are reached


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
