"""Batches of one epoch: their images, order and augmentation are functions of the seed.

Nothing here has state: the order depends on (seed, epoch) and an image's augmentation on (seed,
epoch, draw), so a run resumes anywhere with the same batches, for any number of workers.
"""

import logging
from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from irv2.data.dataset import BadImages, ImageFolder
from irv2.errors import DataError, ImageError
from irv2.images.decode import FILE_LIMITS, decode
from irv2.images.preprocess import resize_and_crop
from irv2.train.data.augment import (
    color_matrix,
    draw_color,
    erase,
    random_shift,
    random_sized_crop,
)
from irv2.train.data.trivial_augment import trivial_augment
from irv2.train.data.workers import prepare_worker, sent
from irv2.train.settings import Recipe, split_groups
from irv2.types import FloatArray, IntArray, UInt8Array

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """The workers' output: uint8 crops, and how to colour them on the device."""

    images: Tensor  # uint8 (N, S, S, 3)
    matrices: Tensor  # float32 (N, 3, 4)
    flips: Tensor  # bool (N,)
    labels: Tensor  # int64 (N,)


class _Epoch(Dataset[tuple[Batch, dict[int, ImageError]]]):
    """The augmented images of one epoch, a batch at a time, with the errors of unreadable ones."""

    def __init__(self, folder: ImageFolder, recipe: Recipe, epoch: int) -> None:
        self._folder, self._recipe, self._epoch = folder, recipe, epoch

    def __getitems__(self, indices: list[int]) -> tuple[Batch, dict[int, ImageError]]:
        batch = _empty_batch(len(indices), self._recipe.image_size)
        images, matrices, flips, labels = (part.numpy() for part in batch)
        done, errors = 0, {}
        for draw in indices:
            try:
                matrices[done], flips[done] = self._augment(draw, images[done])
            except ImageError as error:
                errors[draw] = self._folder.named(error, draw % len(self._folder))
            else:
                labels[done] = self._folder.labels[draw % len(self._folder)]
                done += 1
        return Batch(*(part[:done] for part in batch)), errors

    def _augment(self, draw: int, out: UInt8Array) -> tuple[FloatArray, bool]:
        """Write a draw's image, cropped and resized, into `out`; return its colours and flip."""
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, self._epoch, draw])
        encoded = self._folder.read(draw % len(self._folder))
        image = decode(encoded, FILE_LIMITS, recipe.orientation)
        if recipe.augmentation == "shift":
            whole = resize_and_crop(image, recipe.preprocess)
            random_shift(whole, recipe.max_shift, rng, out)
        else:
            size, resampling = recipe.image_size, recipe.resampling
            random_sized_crop(image, size, resampling, rng, out, recipe.min_area)
        if recipe.auto_augment == "trivial":
            trivial_augment(out, rng)
        matrix = color_matrix(out, draw_color(rng), recipe.preprocess)
        flip = recipe.flip and bool(rng.random() < 0.5)
        if recipe.erase and rng.random() < recipe.erase:
            erase(out, rng)
        return matrix, flip


def _empty_batch(num: int, size: int) -> Batch:
    """Allocate a batch; in a worker, in shared memory, so that sending it copies nothing."""
    batch = Batch(
        torch.empty(num, size, size, 3, dtype=torch.uint8),
        torch.empty(num, 3, 4),
        torch.empty(num, dtype=torch.bool),
        torch.empty(num, dtype=torch.int64),
    )
    if get_worker_info() is not None:
        batch.images.share_memory_()  # type: ignore[no-untyped-call]
    return batch


def batch_indices(labels: IntArray, recipe: Recipe, epoch: int) -> list[list[int]]:
    """List the draws of every batch of an epoch, in order; draw `d` is image `d % len(labels)`.

    With uniform sampling each image is drawn once. The last short batch is kept, except for a
    single image, which batch norm can't normalise.
    """
    rng, num_images = np.random.default_rng([recipe.seed, epoch]), len(labels)
    if recipe.sampling == "balanced":
        order = rng.permutation(_balanced(labels, rng)).tolist()
    else:
        order = rng.permutation(num_images).tolist()
    size, num = recipe.batch_size, num_batches(num_images, recipe)
    if num * size == num_images - 1:
        logger.info("epoch %d: its last batch has one image and is skipped", epoch)
    return [order[i * size : (i + 1) * size] for i in range(num)]


def _balanced(labels: IntArray, rng: np.random.Generator) -> IntArray:
    """Draw each class equally often, as many images as there are, and each of a class as often.

    What division leaves over goes to classes, and to images of a class, by chance. A repeated image
    is another draw, and so augmented otherwise.
    """
    num, classes = len(labels), rng.permutation(np.unique(labels))
    draws = []
    for rank, label in enumerate(classes):
        images = np.flatnonzero(labels == label)
        quota = num // len(classes) + (rank < num % len(classes))
        rounds = range(-(-quota // len(images)))
        of_class = [rng.permutation(images) + num * repeat for repeat in rounds]
        draws.append(np.concatenate(of_class)[:quota] if quota else images[:0])
    return np.concatenate(draws)


def num_batches(num_images: int, recipe: Recipe) -> int:
    """Return how many batches an epoch has; raises DataError if there are none."""
    num = recipe.num_batches(num_images)
    if not num:
        raise DataError("training images", f"{num_images}", "at least 2")
    return num


def batch_for_rank(batch: list[int], recipe: Recipe, rank: int, world_size: int) -> list[int]:
    """Return the share of a global batch that process `rank` of `world_size` trains on.

    A share is whole batch-norm groups, split as train/learner/batch_norm.py does in one process:
    with a group per process, rank r gets group r. If there are fewer groups, the last ranks get
    nothing.
    """
    groups = np.array_split(batch, split_groups(len(batch), recipe.bn_groups))
    mine = np.array_split(np.arange(len(groups)), world_size)[rank]
    return [int(i) for group in mine for i in groups[group]]


def load_epoch(
    folder: ImageFolder,
    recipe: Recipe,
    epoch: int,
    *,
    start: int,
    workers: int,
    bad_images: BadImages,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[tuple[int, Batch], None, None]:
    """Yield this rank's share of `epoch`'s batches from number `start` on, each with its number.

    `workers` processes decode; 0 decodes here. Raises ImageError for an unreadable image unless
    `bad_images` is skip, and EngineError if a worker is lost. A share with fewer than two images
    left is skipped in a lone process; among several it comes as an empty batch, so that all ranks
    see the same numbers.

    A caller that stops early must close the generator: until then the workers live on.
    """
    batches = batch_indices(folder.labels, recipe, epoch)[start:]
    shares = [batch_for_rank(batch, recipe, rank, world_size) for batch in batches]
    loading = augmented(
        folder, recipe, epoch, shares, workers=workers, bad_images=bad_images, device=device
    )
    with closing(loading):
        for number, (batch, kept) in enumerate(loading, start):
            if len(kept) == 1:  # batch norm can't normalise a single image
                logger.warning("left out: the one image that remains of batch %d", number)
                batch = Batch(*(part[:0] for part in batch))
            if len(batch.labels) or world_size > 1:
                yield number, batch


def augmented(
    folder: ImageFolder,
    recipe: Recipe,
    epoch: int,
    batches: list[list[int]],
    *,
    workers: int,
    bad_images: BadImages,
    device: torch.device,
) -> Generator[tuple[Batch, list[int]], None, None]:
    """Yield `batches` of draws, augmented as in `epoch`, each with the draws it holds.

    Those of unreadable images are missing if `bad_images` is skip. Raises as `load_epoch`.
    """
    loader: Any = DataLoader(
        _Epoch(folder, recipe, epoch),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=prepare_worker,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # or else the loader would draw from the run's random state
    )
    with closing(sent(loader)) as loaded:
        for indices, (batch, errors) in zip(batches, loaded, strict=True):
            for error in errors.values():
                if bad_images == "error":
                    raise error
                logger.warning("left out: %s", error)
            yield batch, [i for i in indices if i not in errors]


def _as_it_is(batch: T) -> T:
    return batch
