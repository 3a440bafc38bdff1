"""Every resampling equals its slow reference, in whole and in part."""

import math

import numpy as np
import pytest

from irv2.images.resample import RESAMPLERS, Window

# (source height, source width), (target height, target width): shrinking, enlarging, both,
# unchanged in one or both directions, sides of 1 and 2 pixels.
RESIZES = [
    ((23, 31), (17, 40)),
    ((9, 7), (30, 25)),
    ((40, 33), (11, 9)),
    ((12, 12), (12, 12)),
    ((12, 15), (12, 30)),
    ((1, 1), (5, 7)),
    ((1, 9), (4, 13)),
    ((2, 2), (9, 3)),
    ((3, 1), (2, 6)),
]
# What the fast implementations round differently: they sum in float32 or in fixed point (Pillow's
# weights have 22 bits, OpenCV's 11), so a value near .5 may fall to the neighbouring grey level.
ONE_GREY_LEVEL = 1


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise: neighbours differ by up to 255, so that taps overshoot and every weight shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_torch7_line(line: list[float], count: int) -> list[float]:
    """torch/image's cubic along one line: corners aligned, four taps, linear beyond the edges."""
    if count == len(line):
        return line
    if len(line) == 1:
        return line * count
    scale = np.float32(len(line) - 1) / np.float32(max(count - 1, 1))
    result = []
    for i in range(count - 1):
        position = np.float32(i) * scale
        k = int(position)
        x = float(position - np.float32(k))
        p1, p2 = line[k], line[k + 1]
        p0 = line[k - 1] if k > 0 else 2 * p1 - p2
        p3 = line[k + 2] if k + 2 < len(line) else 2 * p2 - p1
        slope1, slope2 = (p2 - p0) / 2, (p3 - p1) / 2  # a Hermite spline through p1 and p2
        result.append(
            (2 * x**3 - 3 * x**2 + 1) * p1 + (x**3 - 2 * x**2 + x) * slope1
            + (-2 * x**3 + 3 * x**2) * p2 + (x**3 - x**2) * slope2
        )  # fmt: skip
    return [*result, line[-1]]  # the last corner is exactly the source's


def keys_cubic(distance: float, a: float) -> float:
    """Keys' convolution kernel."""
    x = abs(distance)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def slow_opencv_line(line: list[float], count: int) -> list[float]:
    """Half-pixel centres, a = -0.75, no antialiasing, the border pixel repeated."""
    result = []
    for i in range(count):
        centre = (i + 0.5) * len(line) / count - 0.5
        k = math.floor(centre)
        result.append(
            sum(
                keys_cubic(centre - j, -0.75) * line[min(max(j, 0), len(line) - 1)]
                for j in range(k - 1, k + 3)
            )
        )
    return result


def slow_pillow_line(line: list[float], count: int) -> list[float]:
    """Half-pixel centres, a = -0.5, the kernel widened when shrinking, cut off at the border."""
    result = []
    scale = len(line) / count
    widening = max(scale, 1.0)
    for i in range(count):
        centre = (i + 0.5) * scale
        first = max(int(centre - 2 * widening + 0.5), 0)
        last = min(int(centre + 2 * widening + 0.5), len(line))
        weights = [keys_cubic((j + 0.5 - centre) / widening, -0.5) for j in range(first, last)]
        values = zip(weights, line[first:last], strict=True)
        total = sum(weight * value for weight, value in values) / sum(weights)
        # Pillow rounds and clips between its two passes, halves upwards.
        result.append(min(max(math.floor(total + 0.5), 0), 255))
    return result


SLOW_LINES = {
    "torch7-bicubic": slow_torch7_line,
    "opencv-cubic": slow_opencv_line,
    "pillow-bicubic": slow_pillow_line,
}


def slow_resize(image_hwc: np.ndarray, height: int, width: int, name: str) -> np.ndarray:
    """Every row, then every column, value by value."""
    line = SLOW_LINES[name]
    channels = []
    for channel in range(3):
        rows = [line([float(v) for v in row], width) for row in image_hwc[:, :, channel]]
        columns = [line(list(column), height) for column in zip(*rows, strict=True)]
        channels.append(np.array(columns).T)
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255)


@pytest.mark.parametrize("name", RESAMPLERS)
@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_resizing_equals_the_slow_reference(name, source, target):
    image = pixels(*source)
    found = RESAMPLERS[name](image, *target, Window(0, 0, *target))
    expected = slow_resize(image, *target, name)
    assert (found.shape, found.dtype) == ((*target, 3), np.uint8)
    difference = np.abs(found - expected)
    assert difference.max() <= ONE_GREY_LEVEL
    # Off by one needs a value close to a half, as simple ratios make some (2 -> 9: 12 %).
    assert difference.mean() < 0.2


@pytest.mark.parametrize("name", RESAMPLERS)
@pytest.mark.parametrize(("source", "target"), RESIZES)
def test_a_window_is_that_part_of_the_whole_resized_image(name, source, target):
    image = pixels(*source, seed=1)
    height, width = target
    whole = RESAMPLERS[name](image, height, width, Window(0, 0, height, width))
    corners = [(0, 0), (height // 3, width // 3), (height - 1, width - 1)]
    for top, left in corners:
        window = Window(top, left, height - top, width - left)
        part = RESAMPLERS[name](image, height, width, window)
        np.testing.assert_array_equal(part, whole[top:, left:])
    inner = Window(height // 4, width // 4, max(height // 2, 1), max(width // 2, 1))
    rows = slice(inner.top, inner.top + inner.height)
    columns = slice(inner.left, inner.left + inner.width)
    np.testing.assert_array_equal(
        RESAMPLERS[name](image, height, width, inner), whole[rows, columns]
    )


def test_the_three_resamplings_are_told_apart_by_the_golden_vector():
    # One bright pixel on black, 8 -> 5 along each line: what each of them makes of it.
    image = np.zeros((1, 8, 3), np.uint8)
    image[0, 3] = 200
    found = {
        name: resize(image, 1, 5, Window(0, 0, 1, 5))[0, :, 0].tolist()
        for name, resize in RESAMPLERS.items()
    }
    # torch7: positions 0, 1.75, 3.5, 5.25, 7; the third lies half-way: 200 x 9/16 = 112.5, which
    # rounds to even. opencv: centres 0.3, 1.9, 3.5, ...: 200 x 0.59375 = 118.75. pillow: the kernel
    # is 1.6 times wider, so that a neighbour sees the pixel too.
    assert found["torch7-bicubic"] == [0, 0, 112, 0, 0]
    assert found["opencv-cubic"] == [0, 0, 119, 0, 0]
    assert found["pillow-bicubic"] == [0, 37, 102, 0, 0]


def test_torch7_keeps_the_corners_and_clips_what_overshoots():
    image = np.full((6, 6, 3), 255, np.uint8)
    image[:, 3:] = 0
    image[0, 0], image[5, 5] = 17, 203
    found = RESAMPLERS["torch7-bicubic"](image, 25, 25, Window(0, 0, 25, 25))
    assert (found[0, 0, 0], found[24, 24, 0]) == (17, 203)
    assert found[12, 5].min() == 255  # the spline passes 255 before the edge
    assert found[12, 18].max() == 0
