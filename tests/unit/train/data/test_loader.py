import dataclasses
import hashlib
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irv2.data.dataset import ImageFolder, open_split
from irv2.data.shard_writer import write_shards
from irv2.errors import DataError, EngineError, ImageError
from irv2.train.data.loader import Batch, batch_for_rank, batch_indices, load_epoch, num_batches
from irv2.train.settings import SETTINGS, Recipe, split_groups

RECIPE = dataclasses.replace(
    SETTINGS["2"], batch_size=8, bn_group=4, image_size=75, resize=82, seed=5
)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (90, 100, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / label / f"{i}.jpg")
    return open_split(tmp_path, "train")


def load(
    folder: ImageFolder,
    epoch: int = 1,
    start: int = 0,
    workers: int = 0,
    recipe: Recipe = RECIPE,
    bad_images: str = "error",
    rank: int = 0,
    world_size: int = 1,
) -> list[tuple[int, Batch]]:
    return list(
        load_epoch(
            folder,
            recipe,
            epoch,
            start=start,
            workers=workers,
            bad_images=bad_images,
            device=torch.device("cpu"),
            rank=rank,
            world_size=world_size,
        )
    )


def assert_same(mine: list[tuple[int, Batch]], theirs: list[tuple[int, Batch]]) -> None:
    assert [number for number, _ in mine] == [number for number, _ in theirs]
    for (_, left), (_, right) in zip(mine, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_an_epoch_has_every_image_once_and_keeps_the_short_last_batch(folder):
    batches = load(folder)
    assert [len(batch.labels) for _, batch in batches] == [8, 8, 4]
    assert sorted(torch.cat([batch.labels for _, batch in batches]).tolist()) == [0] * 10 + [1] * 10
    images = torch.cat([batch.images for _, batch in batches])
    assert (images.shape, images.dtype) == ((20, 75, 75, 3), torch.uint8)


def test_batches_do_not_depend_on_workers(folder):
    assert_same(load(folder, workers=2), load(folder, workers=0))


def test_an_epoch_resumed_in_the_middle_has_the_same_batches(folder):
    assert_same(load(folder, start=1), load(folder)[1:])


def test_neither_do_those_of_every_augmentation_depend_on_workers_or_where_an_epoch_began(folder):
    recipe = dataclasses.replace(RECIPE, min_area=0.5, auto_augment="trivial", erase=0.5)
    whole = load(folder, recipe=recipe)
    assert_same(load(folder, workers=2, start=1, recipe=recipe), whole[1:])
    shares = [load(folder, recipe=recipe, rank=rank, world_size=2) for rank in range(2)]
    images = torch.cat([share[0][1].images for share in shares])
    assert torch.equal(images, whole[0][1].images)


@pytest.mark.parametrize(
    "values", [{"min_area": 0.9}, {"auto_augment": "trivial"}, {"erase": 1.0}], ids=str
)
def test_each_augmentation_changes_images_and_none_their_labels(folder, values):
    [(_, mine), *_] = load(folder, recipe=dataclasses.replace(RECIPE, **values))
    [(_, plain), *_] = load(folder)
    changed = (mine.images != plain.images).flatten(1).any(1)
    assert changed.sum() >= 4  # of 8: TrivialAugment leaves some as they are
    assert torch.equal(mine.labels, plain.labels)


def test_an_erased_part_changes_the_colours_of_the_rest_not_at_all(folder):
    [(_, mine), *_] = load(folder, recipe=dataclasses.replace(RECIPE, erase=1.0))
    [(_, plain), *_] = load(folder)
    assert torch.equal(mine.matrices, plain.matrices)
    assert torch.equal(mine.flips, plain.flips)


def test_the_images_of_the_settings_are_those_of_runs_that_have_begun(tmp_path):
    """From before there were other augmentations; a PNG, so that no decoder has a say."""
    (tmp_path / "train" / "one").mkdir(parents=True)
    for i in range(4):
        rows, columns = np.indices((90, 100))
        pixels = np.stack([rows * 2, columns * 2, (rows * columns + 50 * i) % 256], 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "train" / "one" / f"{i}.png")
    [(_, batch)] = load(open_split(tmp_path, "train"))
    digest = hashlib.sha256(batch.images.numpy().tobytes()).hexdigest()
    assert digest[:16] == "fcd27e92671b8dc0"
    assert batch.flips.tolist() == [False, False, False, True]
    assert batch.matrices.double().sum().item() == pytest.approx(-22.57350504482747)


def test_order_and_augmentation_change_with_epoch_and_seed(folder):
    assert batch_indices(np.zeros(20, np.int64), RECIPE, 1) != batch_indices(
        np.zeros(20, np.int64), RECIPE, 2
    )
    assert batch_indices(np.zeros(20, np.int64), RECIPE, 1) != batch_indices(
        np.zeros(20, np.int64), dataclasses.replace(RECIPE, seed=6), 1
    )
    [(_, first), *_], [(_, second), *_] = load(folder, epoch=1), load(folder, epoch=2)
    assert not torch.equal(first.matrices, second.matrices)


def test_a_last_batch_of_one_image_is_skipped_with_a_notice(caplog):
    caplog.set_level("INFO")
    batches = batch_indices(np.zeros(17, np.int64), RECIPE, 1)
    assert [len(batch) for batch in batches] == [8, 8]
    assert "one image and is skipped" in caplog.text


def test_the_notice_about_a_single_image_comes_once_an_epoch(folder, caplog):
    caplog.set_level("INFO")
    few = folder.subset(range(17))
    assert len(load(few)) == num_batches(17, RECIPE) == 2
    assert caplog.text.count("one image and is skipped") == 1


@pytest.mark.parametrize("num_images", [2, 7, 8, 9, 10, 16, 17])
def test_batches_are_as_many_as_counted(num_images):
    assert len(batch_indices(np.zeros(num_images, np.int64), RECIPE, 1)) == num_batches(
        num_images, RECIPE
    )


def test_a_single_image_makes_no_epoch():
    with pytest.raises(DataError, match="at least 2"):
        num_batches(1, RECIPE)


def test_the_one_image_that_unreadable_ones_leave_of_a_batch_is_left_out_with_a_notice(
    folder, caplog
):
    first, *others = batch_indices(np.zeros(20, np.int64), RECIPE, 1)[2]
    for i in others:
        folder.path(i).write_bytes(b"\xff\xd8\xff")
    assert [number for number, _ in load(folder, bad_images="skip")] == [0, 1]
    assert "the one image that remains of batch 2" in caplog.text
    assert folder.path(first).name not in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_and_shards_give_the_same_epoch(folder, tmp_path, workers):
    write_shards(tmp_path, tmp_path / "shards", 20_000)
    sharded = open_split(tmp_path / "shards", "train")
    assert_same(load(sharded, workers=workers), load(folder))
    assert_same(load(sharded, workers=workers, start=2), load(folder)[2:])


def test_the_shares_of_two_ranks_are_the_batch_norm_groups_of_one_process(folder):
    whole = load(folder)
    ranks = [load(folder, rank=rank, world_size=2) for rank in range(2)]
    for (number, batch), *shares in zip(whole, *ranks, strict=True):
        for rank, (share_number, mine) in enumerate(shares):
            assert share_number == number
            for part, of_all in zip(mine, batch, strict=True):
                assert torch.equal(part, of_all.tensor_split(2)[rank])


@pytest.mark.parametrize("num_images", [*range(2, 17), 63, 64])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_shares_are_contiguous_whole_groups_and_local_groups_have_the_global_sizes(
    num_images, world_size
):
    recipe = dataclasses.replace(RECIPE, batch_size=64, bn_group=8)
    batch = list(range(num_images))
    shares = [batch_for_rank(batch, recipe, rank, world_size) for rank in range(world_size)]
    assert [i for mine in shares for i in mine] == list(range(num_images))
    local_groups = [
        len(group)
        for mine in shares
        if mine
        for group in torch.tensor(mine).tensor_split(split_groups(len(mine), 8 // world_size))
    ]
    groups = torch.arange(num_images).tensor_split(split_groups(num_images, 8))
    assert local_groups == [len(group) for group in groups]


def test_a_rank_left_without_images_still_sees_every_batch(folder):
    recipe = dataclasses.replace(RECIPE, batch_size=18, bn_group=9)  # 18 and 2: the 2 are one group
    first, second = (load(folder, recipe=recipe, rank=rank, world_size=2) for rank in range(2))
    assert [len(batch.labels) for _, batch in first] == [9, 2]
    assert [len(batch.labels) for _, batch in second] == [9, 0]


def test_loading_leaves_torchs_random_state_alone(folder):
    before = torch.get_rng_state()
    load(folder, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_stops_with_its_name_or_is_left_out(folder, workers, caplog):
    victim = folder.path(3)
    victim.write_bytes(victim.read_bytes()[:900])
    with pytest.raises(ImageError, match=r"cat/3\.jpg: .*replace the file or pass --bad-images"):
        load(folder, workers=workers)
    batches = load(folder, workers=workers, bad_images="skip")
    assert sum(len(batch.labels) for _, batch in batches) == 19
    assert "cat/3.jpg" in caplog.text


@pytest.mark.parametrize("augmentation", ["area-crop", "shift"])
def test_a_picture_too_narrow_to_resize_is_named_or_left_out(folder, augmentation, caplog):
    Image.new("RGB", (1, 100_000)).save(folder.path(3).with_suffix(".png"))
    folder.path(3).with_suffix(".png").rename(folder.path(3))
    shift = 0.1 if augmentation == "shift" else 0.0
    recipe = dataclasses.replace(RECIPE, augmentation=augmentation, max_shift=shift)
    with pytest.raises(ImageError, match=r"cat/3\.jpg: 1x100000 pixels become .*--bad-images skip"):
        load(folder, recipe=recipe)
    batches = load(folder, recipe=recipe, bad_images="skip")
    assert sum(len(batch.labels) for _, batch in batches) == 19
    assert "left out: " in caplog.text
    assert "cat/3.jpg: 1x100000 pixels" in caplog.text


def test_pictures_are_turned_where_the_recipe_says_so(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    for i in range(len(folder)):
        with Image.open(folder.path(i)) as image:
            image.load()
        image.save(folder.path(i).with_suffix(".png"), exif=exif)
        folder.path(i).with_suffix(".png").rename(folder.path(i))
    upright = dataclasses.replace(
        RECIPE, orientation="exif", augmentation="shift", max_shift=0.001, flip=False
    )
    stored = dataclasses.replace(upright, orientation="stored")
    for (_, mine), (_, theirs) in zip(
        load(folder, recipe=upright), load(folder, recipe=stored), strict=True
    ):
        assert not torch.equal(mine.images, theirs.images)
    assert upright.preprocess.orientation == "exif"


def test_an_image_in_a_shard_is_replaced_where_it_came_from(folder, tmp_path):
    write_shards(folder.root.parent, tmp_path / "shards", 10**6)
    shards = open_split(tmp_path / "shards", "train")
    path = shards.root / "000000.tar"
    with path.open("r+b") as shard:
        shard.seek(int(shards.spans[3, 0]))
        shard.write(b"damaged")
    with pytest.raises(ImageError) as caught:
        load(shards)
    line = str(caught.value)
    assert line.startswith(f"{path}/cat/3.jpg: ")
    assert "replace it where it came from and run `irv2 data shard` again or pass --bad" in line
    assert f"`irv2 data check {tmp_path / 'shards'}` finds all" in line


def test_a_lost_worker_is_one_line_and_ends_the_others(folder):
    before = multiprocessing.active_children()
    many = folder.subset(list(range(20)) * 20)  # far more than workers fetch ahead
    batches = load_epoch(
        many, RECIPE, 1, start=0, workers=2, bad_images="error", device=torch.device("cpu")
    )
    next(batches)
    victim, other = [w for w in multiprocessing.active_children() if w not in before]
    victim.kill()
    victim.join()
    with pytest.raises(EngineError, match=r"a decoding process: was lost .*lower --workers"):
        list(batches)
    other.join(timeout=20)
    assert not other.is_alive()


BALANCED = dataclasses.replace(RECIPE, sampling="balanced")


@pytest.mark.parametrize("counts", [(20, 3, 1), (5, 5, 5), (1, 1, 30), (2, 0, 9)])
def test_a_balanced_epoch_has_as_many_of_every_class_and_of_a_class_each_as_often(counts):
    labels = np.repeat(np.arange(3), counts)
    n = len(labels)
    draws = np.concatenate(batch_indices(labels, BALANCED, 1))
    kept = n - (n % 8 == 1)
    assert len(draws) == len(set(draws.tolist())) == kept
    of_class = np.bincount(labels[draws % n], minlength=3)[np.array(counts) > 0]
    assert of_class.max() - of_class.min() <= 1 + n - kept
    for label in set(labels.tolist()):
        of_image = np.bincount(draws % n, minlength=n)[labels == label]
        assert of_image.max() - of_image.min() <= 1 + n - kept


def test_the_order_of_a_balanced_epoch_changes_with_epoch_and_seed():
    labels = np.repeat(np.arange(2), (9, 3))
    orders = [batch_indices(labels, BALANCED, epoch) for epoch in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert batch_indices(labels, dataclasses.replace(BALANCED, seed=6), 1) != orders[0]


def test_a_balanced_epoch_is_the_same_resumed_and_over_workers_and_processes(folder):
    uneven = folder.subset([*range(10), 10, 11])  # ten cats, two dogs
    whole = load(uneven, recipe=BALANCED)
    assert torch.cat([batch.labels for _, batch in whole]).bincount().tolist() == [6, 6]
    assert_same(load(uneven, recipe=BALANCED, start=1, workers=2), whole[1:])
    ranks = [load(uneven, recipe=BALANCED, rank=rank, world_size=2) for rank in range(2)]
    for (_, batch), (_, first), (_, second) in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)
        assert torch.equal(torch.cat([first.labels, second.labels]), batch.labels)


def test_a_repeated_image_is_augmented_otherwise(folder):
    uneven = folder.subset([*range(10), 10])  # one dog
    dogs = [b.matrices[b.labels == 1] for _, b in load(uneven, recipe=BALANCED)]
    matrices = torch.cat(dogs)
    assert len(matrices) in (5, 6)
    assert len(matrices.unique(dim=0)) == len(matrices)


ORPHAN = """
import multiprocessing, os, sys, time
from irv2.train.data.workers import prepare_worker

def work():
    while sys.argv[1] == "killed" and os.getppid() == trainer:
        time.sleep(0.01)
    prepare_worker(0)
    print("works", flush=True)

trainer = os.getpid()
worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
if sys.argv[1] == "killed":
    os.kill(trainer, 9)
worker.join()
"""


@pytest.mark.parametrize(("trainer", "said"), [("lives", "works\n"), ("killed", "")])
def test_a_worker_whose_trainer_was_killed_before_it_began_ends(trainer, said):
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, trainer], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.stdout == said
