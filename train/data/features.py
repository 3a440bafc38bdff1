"""What the frozen network makes of every image, computed once and kept in the run's folder.

A head is trained on these features: of the training images under several augmentations, those of
the loader's first epochs, and of the validation images as evaluation sees them. A file holds a
fixed part of the images, so that a run which was killed goes on with the next file, and computes
what it would have computed.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Generator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from irv2.checkpoint import content_sha256
from irv2.data.dataset import BadImages, ImageFolder
from irv2.errors import DataError
from irv2.evaluate import load_batches
from irv2.images.crops import BATCH_SIZE
from irv2.model.build import Network
from irv2.model.paper import Normalized
from irv2.results import top_k_indices
from irv2.system.arrays import bytes_from_arrays, load_arrays
from irv2.system.files import write_atomically
from irv2.system.machine import cpu_has_bfloat16
from irv2.system.progress import Progress
from irv2.train.data.augment import apply_color
from irv2.train.data.feature_engine import Engine, FeatureEngine, Precision
from irv2.train.data.loader import Batch, augmented, batch_for_rank, batch_indices
from irv2.train.settings import Recipe
from irv2.types import FloatArray, IntArray

logger = logging.getLogger(__name__)

FOLDER = "features"
ABOUT = "about.json"
BATCHES_PER_FILE = 16


class Features:
    """The features of a run's images, float32 (n, F) with F the classifier's inputs.

    `compute` makes what is missing; then `load_epoch` and `count_wrong` read from the files.
    """

    def __init__(
        self,
        place: Path,
        recipe: Recipe,
        data: tuple[ImageFolder, ImageFolder],
        network: Network,
        device: torch.device,
    ) -> None:
        """Use files below `place`, in a folder named by a hash of all that decides the features."""
        self._recipe, self._network, self._device = recipe, network.eval(), device
        self._train_set, self._val_set = data
        self._folder = place / FOLDER / _identity(recipe, data, network)

    def compute(
        self,
        *,
        workers: int,
        threads: int,
        bad_images: BadImages,
        before_file: Callable[[], None],
    ) -> None:
        """Compute what is not on file yet; raises as `load_epoch` of the loader does.

        `before_file` is called before each file is computed, and may raise to end it there.
        """
        crops = self._recipe.feature_crops
        engine = FeatureEngine(self._network, self._precision(), crops * len(self._train_set))
        for crop in range(1, crops + 1):
            self._compute_train(crop, engine, workers, bad_images, before_file)
        if not self._val.is_file():
            before_file()
            write_atomically(self._val, self._compute_val(threads, bad_images))

    def load_epoch(
        self, epoch: int, *, start: int, rank: int, world_size: int
    ) -> Generator[tuple[int, Batch], None, None]:
        """Yield this rank's batches of `epoch` from number `start` on, as the loader does.

        Features stand in the place of images. The augmentations take turns by epoch; an image that
        balanced sampling repeats has the same one.
        """
        crop = (epoch - 1) % self._recipe.feature_crops + 1
        row_of, features = self._load_train(crop)
        batches = batch_indices(self._train_set.labels, self._recipe, epoch)
        for number, batch in enumerate(batches[start:], start):
            share = batch_for_rank(batch, self._recipe, rank, world_size)
            images = [draw % len(self._train_set) for draw in share]
            kept = [i for i in images if i in row_of]
            nothing = torch.empty(len(kept), 0)
            labels = torch.from_numpy(self._train_set.labels[kept].astype(np.int64))
            rows = torch.from_numpy(features[[row_of[i] for i in kept]])
            yield number, Batch(rows, nothing, nothing, labels)

    def count_wrong(self, weight: Tensor, bias: Tensor) -> tuple[int, int, int]:
        """Count validation images, and how many a classifier gets wrong in top 1 and in top 5."""
        labels, features = self._val_features
        logits = features @ weight.numpy().T + bias.numpy()
        right = top_k_indices(logits, 5) == labels[:, None]
        n = len(labels)
        return n, n - int(right[:, 0].sum()), n - int(right.any(axis=1).sum())

    def _precision(self) -> Precision:
        """Return the precision of the training images' features, kept with them.

        bfloat16 if the machine computes in it, which takes half the time or less. Not measured:
        the same command gives the same features again.
        """
        about = self._folder / ABOUT
        if about.is_file():
            found: Precision = json.loads(about.read_text())["precision"]
            return found
        self._folder.mkdir(parents=True, exist_ok=True)
        is_gpu = self._device.type == "cuda"
        has_bfloat16 = torch.cuda.is_bf16_supported() if is_gpu else cpu_has_bfloat16()
        precision: Precision = "bf16" if has_bfloat16 else "fp32"
        write_atomically(about, json.dumps({"precision": precision}).encode())
        return precision

    def _compute_train(
        self,
        crop: int,
        engine: Engine,
        workers: int,
        bad_images: BadImages,
        before_file: Callable[[], None],
    ) -> None:
        missing = {file: part for file, part in self._train_files(crop) if not file.is_file()}
        if not missing:  # no workers for nothing
            return
        batches = [
            list(part[start : start + BATCH_SIZE])
            for part in missing.values()
            for start in range(0, len(part), BATCH_SIZE)
        ]
        loading = augmented(
            self._train_set,
            self._recipe,
            crop,
            batches,
            workers=workers,
            bad_images=bad_images,
            device=self._device,
        )
        title = f"features {crop}/{self._recipe.feature_crops}"
        num_images, done = len(self._train_set), len(self._train_set) - sum(map(len, batches))
        with closing(loading), Progress(title, num_images, "images", done) as bar:
            for file, part in missing.items():
                before_file()
                indices: list[int] = []
                rows: list[Tensor] = []
                for _ in range(0, len(part), BATCH_SIZE):
                    batch, kept = next(loading)
                    if kept:
                        rows.append(engine(self._colored(batch)))
                    indices += kept
                    bar.advance(len(kept))
                features = torch.cat(rows).numpy() if rows else np.empty((0, 0), np.float32)
                write_atomically(file, _bytes(indices=indices, features=features))

    def _colored(self, batch: Batch) -> Tensor:
        parts = (batch.images, batch.matrices, batch.flips)
        return apply_color(*(part.to(self._device, non_blocking=True) for part in parts))

    def _compute_val(self, threads: int, bad_images: BadImages) -> bytes:
        """Compute in float32, so that errors are those of the whole network."""
        config = self._recipe.preprocess
        normalized = Normalized(self._network, config.mean, config.std).to(self._device)
        engine = FeatureEngine(self._network, "fp32", len(self._val_set))
        labels: list[IntArray] = []
        rows: list[Tensor] = []
        loading = load_batches(self._val_set, config, BATCH_SIZE, bad_images, workers=threads)
        with Progress("features of val", len(self._val_set)) as bar:
            for batch in loading:
                images = normalized.normalize(torch.from_numpy(batch.images).to(self._device))
                rows.append(engine(images))
                labels.append(batch.labels)
                bar.advance(len(batch.labels))
        if not rows:
            raise DataError(self._val_set.place, "no image could be read", "at least one")
        return _bytes(labels=np.concatenate(labels), features=torch.cat(rows).numpy())

    def _load_train(self, crop: int) -> tuple[dict[int, int], FloatArray]:
        """Return the row of each image that could be read, and the rows."""
        parts = [_load(file, "indices", "features") for file, _ in self._train_files(crop)]
        indices = [i for part, _ in parts for i in part.tolist()]
        if not indices:
            raise DataError(self._train_set.place, "no image could be read", "at least one")
        features = np.concatenate([rows for _, rows in parts if len(rows)])
        return {i: row for row, i in enumerate(indices)}, features

    def _train_files(self, crop: int) -> list[tuple[Path, range]]:
        """List the files of an augmentation, each with the images it holds."""
        num, size = len(self._train_set), BATCHES_PER_FILE * BATCH_SIZE
        return [
            (self._folder / f"train-{crop}-{start}.npz", range(start, min(start + size, num)))
            for start in range(0, num, size)
        ]

    @cached_property
    def _val_features(self) -> tuple[IntArray, FloatArray]:
        """The labels and features of the validation images, read once and not in every epoch."""
        labels, features = _load(self._val, "labels", "features")
        return labels, features

    @property
    def _val(self) -> Path:
        return self._folder / "val.npz"


def _identity(recipe: Recipe, data: tuple[ImageFolder, ImageFolder], network: Network) -> str:
    """Hash what the features depend on, except for the precision."""
    weights = {n: w for n, w in network.state_dict().items() if not n.startswith("classifier.")}
    digest = hashlib.sha256(content_sha256(weights).encode())
    names = ("preprocess", "seed", "augmentation", "max_shift", "flip", "min_area", "auto_augment",
             "erase")  # fmt: skip
    digest.update(repr([getattr(recipe, name) for name in names]).encode())
    for split in data:
        digest.update("\n".join(split.files).encode())
        digest.update(split.labels.tobytes())
    return digest.hexdigest()[:16]


def _bytes(**arrays: ArrayLike) -> bytes:
    """Return a file's contents, which every epoch reads again: unpacking would take its time."""
    return bytes_from_arrays(compress=False, **arrays)


def _load(file: Path, *names: str) -> list[NDArray[Any]]:
    try:
        return load_arrays(file, *names)
    except ValueError as error:
        way_out = "remove it; the same command computes it again"
        raise DataError(file, f"damaged ({error})", "features", way_out) from error
