"""Several views of one image: where they are cut, and how their answers become one."""

import numpy as np
import pytest
from PIL import Image

from irv2.data.dataset import open_split
from irv2.evaluate import EvaluationOptions, classify_folder
from irv2.images.crops import CROPS, combine, views
from irv2.images.preprocess import Preprocess, resize_and_crop
from irv2.runners.base import Runner

CONFIG = Preprocess(resize=8, crop=6)


@pytest.fixture
def landscape():
    """Height 8, width 12, so that nothing is resized: red is the column, green the row."""
    rows, columns = np.mgrid[:8, :12]
    return np.stack([10 * columns, 10 * rows, 0 * rows], axis=2).astype(np.uint8)


def corner(view):
    """Row and column in the image of a view's first pixel."""
    return int(view[0, 0, 1]) // 10, int(view[0, 0, 0]) // 10


@pytest.mark.parametrize("crops", CROPS)
@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8), (33, 20), (5, 7)])
def test_there_are_as_many_views_as_asked_for_whatever_the_image(crops, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = views(image, CONFIG, crops)
    assert (found.shape, found.dtype) == ((crops, 6, 6, 3), np.uint8)
    if crops > 1:  # the second half mirrors the first
        np.testing.assert_array_equal(found[crops // 2 :], found[: crops // 2, :, ::-1])


def test_one_crop_is_the_evaluation_preprocessing(landscape):
    np.testing.assert_array_equal(
        views(landscape, CONFIG, 1)[0], resize_and_crop(landscape, CONFIG)
    )


def test_ten_crops_are_the_corners_and_the_centre_of_the_whole_image(landscape):
    found = views(landscape, CONFIG, 10)
    assert [corner(view) for view in found[:5]] == [(0, 0), (0, 6), (2, 0), (2, 6), (1, 3)]
    np.testing.assert_array_equal(found[4], resize_and_crop(landscape, CONFIG))


def test_twelve_crops_are_five_of_the_central_square_and_the_whole_of_it(landscape):
    found = views(landscape, CONFIG, 12)
    assert [corner(view) for view in found[:5]] == [(0, 2), (0, 4), (2, 2), (2, 4), (1, 3)]
    # Corners aligned, so the ends of the 8 x 8 square from column 2 to 9 stay where they are.
    assert corner(found[5]) == (0, 2)
    assert found[5][-1, -1].tolist() == [90, 70, 0]


def test_144_crops_begin_with_three_squares_of_the_networks_own_resize(landscape):
    found = views(landscape, CONFIG, 144)
    starts = [corner(found[first]) for first in (0, 6, 12)]
    assert starts == [(0, 2), (0, 0), (0, 4)]
    np.testing.assert_array_equal(found[:6], views(landscape, CONFIG, 12)[:6])


def test_144_crops_of_a_portrait_take_the_top_and_the_bottom(landscape):
    found = views(landscape.transpose(1, 0, 2).copy(), CONFIG, 144)
    assert [view[0, 0].tolist()[:2] for view in found[[0, 6, 12]]] == [[20, 0], [0, 0], [40, 0]]


def test_144_crops_use_four_sizes():
    # A ramp: the step between neighbours shrinks as the image grows.
    ramp = np.repeat(np.linspace(0, 255, 256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    found = views(ramp, Preprocess(resize=256, crop=224), 144).astype(float)
    slopes = [np.diff(found[first][0, :, 0]).mean() for first in (0, 18, 36, 54)]
    # 255 grey levels over 256, 288, 320, 352 pixels; one level of rounding over 223 steps.
    np.testing.assert_allclose(slopes, [255 / (s - 1) for s in (256, 288, 320, 352)], atol=1 / 223)


def test_ten_answers_are_summed_as_logits():
    logits = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.testing.assert_array_equal(combine(logits, 10), [logits[:10].sum(0), logits[10:].sum(0)])


@pytest.mark.parametrize("crops", [12, 144])
def test_twelve_and_144_answers_are_averaged_as_probabilities(crops):
    # One view is very sure of class 1; the rest lean to class 0, which the mean follows.
    logits = np.tile(np.float32([1, 0, 0]), (crops, 1))
    logits[0] = [0, 1000, 0]
    powers = np.exp(logits[1].astype(float))
    expected = ((crops - 1) * powers / powers.sum() + [0, 1, 0]) / crops
    np.testing.assert_allclose(np.exp(combine(logits, crops))[0], expected, rtol=1e-6)  # float32
    assert combine(logits, crops).argmax() == 0
    assert logits.sum(0).argmax() == 1  # as summed logits would have it


class BrightnessRunner(Runner):
    """Two classes, dark and light, by a view's mean."""

    backend, image_size, num_classes = "brightness", 6, 2

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch

    def run(self, images):
        assert 1 <= len(images) <= self.max_batch
        light = images.mean(axis=(1, 2, 3), dtype=np.float64) / 255
        return np.stack([1 - light, light], axis=1).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, num in (("dark", 5), ("light", 6)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(num):
            pixels = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{i}.png")
    return open_split(tmp_path, "val")


@pytest.mark.parametrize("crops", CROPS)
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (7, 3), (32, 1), (200, 16)])
def test_each_image_counts_once_whatever_the_crops_batches_and_workers(
    folder, crops, batch_size, workers
):
    options = EvaluationOptions(batch_size=batch_size, workers=workers, crops=crops)
    [ledger] = classify_folder([BrightnessRunner(64)], folder, CONFIG, options=options)
    [expected] = classify_folder(
        [BrightnessRunner(1)], folder, CONFIG, options=EvaluationOptions(crops=crops)
    )
    assert ledger.files == folder.files
    np.testing.assert_array_equal(ledger.logits, expected.logits)
    assert ledger.errors() == expected.errors()


def test_crops_change_what_an_image_is_judged_by(folder):
    options = [EvaluationOptions(crops=crops) for crops in CROPS]
    runner = BrightnessRunner(64)
    ledgers = [classify_folder([runner], folder, CONFIG, options=each)[0] for each in options]
    assert len({ledger.logits.tobytes() for ledger in ledgers}) == len(CROPS)
