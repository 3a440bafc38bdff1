"""The loader's benchmark: that it runs, and that both sides do the same work."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from irv2.bench.photos import photograph
from irv2.data.dataset import ImageFolder, open_split
from irv2.train.bench.loader import UsualImages
from irv2.train.data.augment import apply_color
from irv2.train.data.loader import load_epoch
from irv2.train.settings import SETTINGS


@pytest.mark.slow
def test_the_benchmark_names_its_cases_ratios_and_kernel():
    command = [sys.executable, "-m", "irv2", "bench", "loader", "--rounds", "1", "--json"]
    done = subprocess.run([*command, "--seconds", "0.1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert min(result["images_per_s"].values()) > 0
    assert set(result["ratios"]) == {
        "opencv-cubic / usual Pillow loader",
        "torch7-bicubic / usual Pillow loader",
        "2 workers / 1 worker",
    }
    assert result["kernel"] in {"compiled_kernel", "numpy_kernel"}


@pytest.mark.slow
def test_the_cost_of_each_augmentation_is_measured_beside_the_settings_own():
    command = [sys.executable, "-m", "irv2", "bench", "loader", "--augmentations", "--json"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--seconds", "0.1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert min(result["images_per_s"].values()) > 0
    assert set(result["ratios"]) == {
        f"{case} / the settings'"
        for case in ("--min-area 0.35", "--auto-augment trivial", "--erase 1", "--mixup 0.2",
                     "--cutmix 1")
    }  # fmt: skip


def test_both_loaders_make_the_same_kind_of_batch(tmp_path):
    (tmp_path / "train/photos").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(photograph(i)).save(tmp_path / "train/photos" / f"{i}.jpg")
    photos: ImageFolder = open_split(tmp_path, "train").subset([0, 1, 2, 3] * 16)
    usual = default_collate([UsualImages(photos)[i][0] for i in range(64)])
    recipe = SETTINGS["2"]
    [(_, batch)] = load_epoch(
        photos, recipe, 1, start=0, workers=0, bad_images="error", device=torch.device("cpu")
    )
    ours = apply_color(batch.images, batch.matrices, batch.flips)
    assert usual.shape == ours.shape == (64, 3, 299, 299)
    assert usual.dtype == ours.dtype == torch.float
    # Other draws: the mean of 64 images varies by about 0.06 with them, the contrast by less
    torch.testing.assert_close(usual.mean((0, 2, 3)), ours.mean((0, 2, 3)), atol=0.3, rtol=0)
    torch.testing.assert_close(usual.std((0, 2, 3)), ours.std((0, 2, 3)), atol=0.15, rtol=0)


@pytest.mark.parametrize(("quality", "kilobytes"), [(90, 53), (97, 105)])
def test_the_pictures_are_as_heavy_as_the_help_says(quality, kilobytes):
    sizes = []
    for i in range(4):
        file = io.BytesIO()
        Image.fromarray(photograph(i)).save(file, "JPEG", quality=quality)
        sizes.append(len(file.getvalue()) / 1000)
    assert np.mean(sizes) == pytest.approx(kilobytes, rel=0.1)
