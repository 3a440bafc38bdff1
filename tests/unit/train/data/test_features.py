"""Features on file: those of the network, computed once, whatever was killed in between."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import ImageFolder, open_split
from irv2.errors import DataError, ImageError
from irv2.evaluate import classify_folder
from irv2.model.build import Network, build
from irv2.network_config import SlimConfig
from irv2.runners.torch import TorchRunner
from irv2.train.data.augment import apply_color
from irv2.train.data.features import Features
from irv2.train.data.loader import Batch, batch_indices, load_epoch
from irv2.train.settings import SETTINGS

CPU = torch.device("cpu")
RECIPE = dataclasses.replace(
    SETTINGS["2"],
    batch_size=8, bn_group=4, image_size=75, resize=82, trained="head", feature_crops=2,
)  # fmt: skip
Data = tuple[ImageFolder, ImageFolder]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    rng = np.random.default_rng(0)
    for split, num in (("train", 9), ("val", 3)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(0, 256, (90, 100, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    return open_split(tmp_path, "train"), open_split(tmp_path, "val")


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build(SlimConfig(blocks=(1, 1, 1), width=0.03, num_classes=2)).eval()


def features(place: Path, data: Data, seed: int = 0, bad_images: str = "error") -> Features:
    found = Features(place, RECIPE, data, network(seed), CPU)
    found.compute(workers=0, threads=1, bad_images=bad_images, before_file=lambda: None)
    return found


def epoch(of: Features, number: int = 1, start: int = 0) -> list[tuple[int, Batch]]:
    return list(of.load_epoch(number, start=start, rank=0, world_size=1))


def assert_same(mine: list[tuple[int, Batch]], theirs: list[tuple[int, Batch]]) -> None:
    assert [number for number, _ in mine] == [number for number, _ in theirs]
    for (_, left), (_, right) in zip(mine, theirs, strict=True):
        assert torch.equal(left.images, right.images)
        assert torch.equal(left.labels, right.labels)


def in_fp32(place: Path) -> None:
    """Take float32 whatever the machine has."""
    [folder] = (place / "features").iterdir()
    (folder / "about.json").write_text('{"precision": "fp32"}')
    for file in folder.glob("*.npz"):
        file.unlink()


def test_an_epoch_holds_the_features_of_the_augmented_images_in_the_loader_s_order(tmp_path, data):
    features(tmp_path / "run", data)
    in_fp32(tmp_path / "run")
    found = features(tmp_path / "run", data)
    for number, crop in ((1, 1), (2, 2), (3, 1)):
        order = batch_indices(np.zeros(18, np.int64), RECIPE, number)
        augmented = load_epoch(
            data[0], RECIPE, crop, start=0, workers=0, bad_images="error", device=CPU
        )
        of_image = {}
        for indices, (_, batch) in zip(
            batch_indices(np.zeros(18, np.int64), RECIPE, crop), augmented, strict=True
        ):
            images = apply_color(batch.images, batch.matrices, batch.flips)
            with torch.inference_mode():
                of_image |= zip(indices, network().features(images), strict=True)
        for indices, (_, batch) in zip(order, epoch(found, number), strict=True):
            assert batch.labels.tolist() == [int(data[0].labels[i]) for i in indices]
            expected = torch.stack([of_image[i] for i in indices])
            torch.testing.assert_close(batch.images, expected, rtol=1e-4, atol=1e-5)


def test_an_epoch_resumed_in_the_middle_has_the_same_batches(tmp_path, data):
    found = features(tmp_path / "run", data)
    for (number, mine), (other, theirs) in zip(
        epoch(found)[1:], epoch(found, start=1), strict=True
    ):
        assert number == other
        assert torch.equal(mine.images, theirs.images)


def test_nothing_is_computed_twice(tmp_path, data):
    before = epoch(features(tmp_path / "run", data))
    for split in data:
        for i in range(len(split)):
            split.path(i).write_bytes(b"no image any more")
    after = epoch(features(tmp_path / "run", data))
    assert all(
        torch.equal(a.images, b.images) for (_, a), (_, b) in zip(before, after, strict=True)
    )


def test_what_a_killed_run_left_is_completed_to_the_same_features(tmp_path, data):
    before = epoch(features(tmp_path / "run", data), 2)
    files = sorted((tmp_path / "run").rglob("train-2-*.npz"))
    files[-1].unlink()
    after = epoch(features(tmp_path / "run", data), 2)
    assert all(
        torch.equal(a.images, b.images) for (_, a), (_, b) in zip(before, after, strict=True)
    )


def test_other_weights_have_other_files(tmp_path, data):
    features(tmp_path / "run", data)
    features(tmp_path / "run", data, seed=1)
    assert len(list((tmp_path / "run" / "features").iterdir())) == 2


@pytest.mark.parametrize(
    "values", [{"min_area": 0.5}, {"auto_augment": "trivial"}, {"erase": 0.5}], ids=str
)
def test_other_augmentations_have_other_files(tmp_path, data, values):
    recipe = dataclasses.replace(RECIPE, **values)
    mine = Features(tmp_path, recipe, data, network(), CPU)
    mine.compute(workers=0, threads=1, bad_images="error", before_file=lambda: None)
    features(tmp_path, data)
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_an_unreadable_image_stops_or_is_left_out(tmp_path, data, caplog):
    data[0].path(3).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ImageError, match=r"3\.png"):
        features(tmp_path / "run", data)
    found = features(tmp_path / "run", data, bad_images="skip")
    assert "3.png" in caplog.text
    assert sum(len(batch.labels) for _, batch in epoch(found)) == 17


def test_a_damaged_file_is_named_with_the_way_out(tmp_path, data):
    found = features(tmp_path / "run", data)
    file = next((tmp_path / "run").rglob("train-1-*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="remove it") as caught:
        epoch(found)
    assert str(file) in str(caught.value)


def test_errors_are_those_of_the_whole_network(tmp_path, data):
    model = network()
    found = features(tmp_path / "run", data)
    checkpoint = Checkpoint(
        setting="2",
        epoch=1,
        step=1,
        model=model.config,
        state_dict=model.state_dict(),
        classes=list(data[0].classes),
        preprocess=RECIPE.preprocess,
    )
    with TorchRunner(checkpoint) as runner:
        [predictions] = classify_folder([runner], data[1], RECIPE.preprocess)
    assert found.count_wrong(model.classifier.weight.detach(), model.classifier.bias.detach()) == (
        predictions.counts
    )
