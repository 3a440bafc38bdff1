"""`irv2 bench loader`: images/s of the training input compared with the usual Pillow loader.

Both read the same synthetic JPEGs and do the same augmentation, up to normalised float32 batches,
on one core. The usual loader is that of most PyTorch trainers: Pillow decodes, crops, resizes and
changes colours one operation at a time.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from irv2.bench.photos import HEIGHT, WIDTH, write_photos
from irv2.bench.rounds import Rounds, machine, machine_lock, rate, run_rounds
from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.data.dataset import ImageFolder, open_split
from irv2.images.bicubic import kernel
from irv2.train.data.augment import PRINCIPAL, apply_color, draw_color, draw_crop
from irv2.train.data.loader import Batch, load_epoch
from irv2.train.learner.mixing import draw_mix, partners
from irv2.train.settings import SETTINGS, Recipe

NUM_PHOTOS = 48
RECIPE = SETTINGS["2"]
USUAL = "usual Pillow loader"
OURS = "torch7-bicubic"
RATIOS = {"opencv-cubic": USUAL, OURS: USUAL, "2 workers": "1 worker"}
SETTINGS_OWN = "the settings'"
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    SETTINGS_OWN: {},
    "--min-area 0.35": {"min_area": 0.35},
    "--auto-augment trivial": {"auto_augment": "trivial"},
    "--erase 1": {"erase": 1.0},
    "--mixup 0.2": {"mixup": 0.2},
    "--cutmix 1": {"cutmix": 1.0},
}


@click.command(cls=Program)
@click.option("--rounds", type=click.IntRange(1), default=9, help="Runs of each case.")
@click.option("--seconds", type=FloatRange(0.1), default=4.0, help="Length of one run.")
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90,
    help="Quality of the JPEGs: 90 gives 50 kB each, 97 ImageNet's 110 kB and more decoding.",
)  # fmt: skip
@click.option("--augmentations", is_flag=True,
              help="Measure instead what each further augmentation costs.")  # fmt: skip
@json_option
def main(rounds: int, seconds: float, quality: int, augmentations: bool, as_json: bool) -> None:
    """Measure the training input: images/s on one core, and what a second worker adds."""
    cases, aa = (_augmentations, SETTINGS_OWN) if augmentations else (_cases, OURS)
    ratios = dict.fromkeys(list(AUGMENTATIONS)[1:], aa) if augmentations else RATIOS
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with machine_lock(), tempfile.TemporaryDirectory() as folder:
        before = machine()
        num_bytes = write_photos(Path(folder) / "train" / "photos", NUM_PHOTOS, quality)
        photos = open_split(Path(folder), "train")
        # An endless epoch: the same images again and again.
        endless = photos.subset(np.resize(np.arange(len(photos)), 200_000).tolist())
        measured = run_rounds(cases(endless, seconds), rounds, aa=aa, title="loader")
    result = _result(measured, ratios, aa) | {
        "images": f"{NUM_PHOTOS} JPEGs of {WIDTH}x{HEIGHT}, {num_bytes // NUM_PHOTOS} bytes each",
        "kernel": kernel().__name__,
        "machine": before,
    }
    if as_json:
        print_json(result)
    else:
        click.echo(_table(result))


def _cases(photos: ImageFolder, seconds: float) -> dict[str, Callable[[], float]]:
    def ours(workers: int) -> Iterator[int]:
        return (len(batch.labels) for batch in _ours(photos, RECIPE, workers))

    cubic = dataclasses.replace(RECIPE, resampling="opencv-cubic")
    return {
        USUAL: _timed(lambda: _usual(photos), seconds),
        "opencv-cubic": _timed(lambda: _ours_finished(photos, cubic), seconds),
        OURS: _timed(lambda: _ours_finished(photos, RECIPE), seconds),
        "1 worker": _timed(lambda: ours(workers=1), seconds),
        "2 workers": _timed(lambda: ours(workers=2), seconds),
    }


def _augmentations(photos: ImageFolder, seconds: float) -> dict[str, Callable[[], float]]:
    return {
        name: _timed(
            partial(_ours_finished, photos, dataclasses.replace(RECIPE, **values)), seconds
        )
        for name, values in AUGMENTATIONS.items()
    }


def _timed(batches: Callable[[], Iterator[int]], seconds: float) -> Callable[[], float]:
    def run() -> float:
        sizes = batches()
        next(sizes)  # starts the workers and warms up code and files
        return rate(lambda: next(sizes), seconds)

    return run


def _ours(photos: ImageFolder, recipe: Recipe, workers: int = 0) -> Iterator[Batch]:
    numbered = load_epoch(
        photos,
        recipe,
        epoch=1,
        start=0,
        workers=workers,
        bad_images="error",
        device=torch.device("cpu"),
    )
    return (batch for _, batch in numbered)


def _ours_finished(photos: ImageFolder, recipe: Recipe) -> Iterator[int]:
    """Add what is done on the device in training: colours, as in the usual loader, and mixing."""
    for step, batch in enumerate(_ours(photos, recipe), 1):
        images = apply_color(batch.images, batch.matrices, batch.flips)
        mix = draw_mix(recipe, step)
        if mix is not None:
            images = mix.images(images, partners(len(images), recipe.bn_groups, images.device))
        yield len(images)


def _usual(photos: ImageFolder) -> Iterator[int]:
    loader: Any = DataLoader(UsualImages(photos), batch_size=RECIPE.batch_size)
    return (len(images) for images, _ in loader)


class UsualImages(Dataset[tuple[Tensor, int]]):
    """The original's augmentation in the usual way: items are float32 (3, S, S) and the label."""

    def __init__(self, photos: ImageFolder) -> None:
        self._photos = photos
        self._rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        rng, size = self._rng, RECIPE.image_size
        with Image.open(self._photos.path(i)) as file:
            image = file.convert("RGB")
        part = draw_crop(image.height, image.width, rng)
        assert part is not None  # one of ten tries always fits into 500x375
        box = (part.left, part.top, part.left + part.width, part.top + part.height)
        image = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
        draw = draw_color(rng)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind, alpha in zip(draw.order, draw.alphas, strict=True):
            image = enhancers[kind](image).enhance(alpha)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        pixels += torch.tensor(PRINCIPAL @ draw.lighting).float()[:, None, None]
        mean, std = RECIPE.preprocess.mean, RECIPE.preprocess.std
        pixels.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])
        return pixels, int(self._photos.labels[i])


def _result(measured: Rounds, ratios: dict[str, str], aa: str) -> dict[str, Any]:
    return {
        "images_per_s": {name: round(measured.median(name), 1) for name in measured.rates},
        "ratios": {
            f"{name} / {base}": measured.ratio(name, base).to_json()
            for name, base in ratios.items()
        },
        "aa": measured.aa(aa).to_json(),
        "void": measured.is_void(aa),
    }


def _table(result: dict[str, Any]) -> str:
    rates = tabulate(result["images_per_s"].items(), headers=["case", "images/s"], floatfmt=".0f")
    rows = [
        [name, ratio["ratio"], f"{ratio['lower_95']} to {ratio['upper_95']}"]
        for name, ratio in [*result["ratios"].items(), ("same case twice", result["aa"])]
    ]
    ratios = tabulate(rows, headers=["ratio", "median", "95 %"], floatfmt=".2f")
    void = "\nVOID: the same case differed from itself; is the machine busy?" * result["void"]
    return f"{rates}\n\n{ratios}\n\n{result['images']}; kernel {result['kernel']}{void}"
