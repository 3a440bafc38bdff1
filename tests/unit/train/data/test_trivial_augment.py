"""TrivialAugment's operations: their ranges, their directions, and how often each is drawn."""

import numpy as np
import pytest
from PIL import Image

from irv2.train.data.trivial_augment import OPERATIONS, trivial_augment

(IDENTITY, AUTOCONTRAST, EQUALIZE, ROTATE, SOLARIZE, POSTERIZE, COLOR, CONTRAST, BRIGHTNESS,
 SHARPNESS, SHEAR_X, SHEAR_Y, SHIFT_X, SHIFT_Y) = range(14)  # fmt: skip
GEOMETRY = (ROTATE, SHEAR_X, SHEAR_Y, SHIFT_X, SHIFT_Y)


def picture(side: int = 70, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(50, 200, (side, side, 3), dtype=np.uint8)


def changed(kind: int, strength: float, image: np.ndarray) -> np.ndarray:
    return np.asarray(OPERATIONS[kind](Image.fromarray(image), strength))


@pytest.mark.parametrize("kind", range(14))
@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 1.0])
def test_an_operation_keeps_size_and_mode(kind, strength):
    assert changed(kind, strength, picture()).shape == (70, 70, 3)


@pytest.mark.parametrize("kind", set(range(14)) - {AUTOCONTRAST, EQUALIZE})
def test_strength_0_changes_nothing(kind):
    np.testing.assert_array_equal(changed(kind, 0.0, picture()), picture())


@pytest.mark.parametrize("kind", set(range(14)) - {IDENTITY})
@pytest.mark.parametrize("strength", [-1.0, 1.0])
def test_full_strength_changes_much(kind, strength):
    assert (changed(kind, strength, picture()) != picture()).mean() > 0.5


@pytest.mark.parametrize("kind", [COLOR, CONTRAST, BRIGHTNESS, SHARPNESS, *GEOMETRY])
def test_the_sign_is_a_direction(kind):
    assert not np.array_equal(changed(kind, 0.5, picture()), changed(kind, -0.5, picture()))


@pytest.mark.parametrize(("kind", "axis"), [(SHIFT_X, 1), (SHIFT_Y, 0)])
def test_a_shift_is_at_most_32_of_224_pixels_and_leaves_black(kind, axis):
    moved = np.moveaxis(changed(kind, 1.0, picture()), axis, 0)
    np.testing.assert_array_equal(moved[:60], np.moveaxis(picture(), axis, 0)[10:])
    assert not moved[60:].any()


@pytest.mark.parametrize(("kind", "axis"), [(SHEAR_X, 0), (SHEAR_Y, 1)])
def test_a_shear_leaves_the_centre_and_moves_the_edges(kind, axis):
    line = np.zeros((71, 71, 3), np.uint8)
    (line[:, 35] if axis == 0 else line[35])[:] = 255
    rows, columns = changed(kind, 1.0, line)[..., 0].nonzero()
    along, across = (rows, columns) if axis == 0 else (columns, rows)
    np.testing.assert_allclose(across - 35, -0.99 * (along - 35), atol=1)


def test_colours_are_multiplied_by_0_01_to_1_99():
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert changed(BRIGHTNESS, -1.0, grey).max() == 1
    assert changed(BRIGHTNESS, 1.0, grey).min() == 199


def test_posterize_keeps_2_bits_and_solarize_inverts_all_at_full_strength():
    assert set(np.unique(changed(POSTERIZE, -1.0, picture()))) == {0, 64, 128, 192}
    np.testing.assert_array_equal(changed(SOLARIZE, 1.0, picture()), 255 - picture())


def test_draws_alone_decide_and_differ():
    def augmented(seed: int) -> bytes:
        image = picture(16)
        trivial_augment(image, np.random.default_rng(seed))
        return image.tobytes()

    results = [augmented(seed) for seed in range(300)]
    assert results == [augmented(seed) for seed in range(300)]
    assert len(set(results)) > 100
