"""What `irv2 data check` finds in folders, lists and shards, and when it exits with 1."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from irv2.cli.main import main
from irv2.data.check import check
from irv2.data.shard_writer import write_shards


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes, with 4 + 2 different pictures each."""
    seed = 0
    for split, num in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(num):
                picture(seed := seed + 1).save(folder / f"{i}.png")
    return tmp_path / "data"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", "check", *map(str, arguments)])


def test_sound_data_pass_as_a_folder_as_shards_and_as_a_list(data, tmp_path):
    write_shards(data, tmp_path / "shards", 10_000)
    rows = [f"{p},{p.parent.name},{p.parent.parent.name}" for p in data.rglob("*.png")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    for source in (data, tmp_path / "shards", tmp_path / "list.csv"):
        done = run(source)
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[-1] == "nothing wrong was found"
        assert check(source).all.images == {"train": 8, "val": 4}


def test_kinds_of_images_are_counted_by_class(data):
    picture(50, "CMYK").save(data / "train/cat/cmyk.jpg")
    picture(51, "L").resize((300, 200)).save(data / "train/cat/grey.png")
    picture(52, "RGBA").save(data / "train/dog/alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(53).save(data / "train/dog/turned.jpg", exif=exif)
    found = check(data)
    cat, dog = found.classes["cat"], found.classes["dog"]
    assert (cat.cmyk, cat.grey, cat.alpha, cat.turned) == (1, 1, 0, 0)
    assert (dog.cmyk, dog.grey, dog.alpha, dog.turned) == (0, 0, 1, 1)
    assert cat.formats == {"PNG": 7, "JPEG": 1}
    assert (cat.smallest, cat.median, cat.largest) == ("30x20", "30x20", "300x200")
    assert found.all.images == {"train": 12, "val": 4}
    assert (found.wrong, len(found.remarks)) == ([], 1)
    assert found.remarks[0].startswith("1 images are turned by their EXIF orientation")


def test_every_unreadable_image_is_named(data):
    for i in range(20):
        half = (data / "train/cat/0.png").read_bytes()[: 200 + i]
        (data / f"train/dog/half{i}.png").write_bytes(half)
    (data / "val/cat/gone.jpg").symlink_to("/nowhere")
    os.mkfifo(data / "val/cat/pipe.jpg")
    done = run(data)
    assert done.exit_code == 1
    assert all(f"unreadable: train/dog/half{i}.png: " in done.stdout for i in range(20))
    assert "unreadable: val/cat/gone.jpg: No such file" in done.stdout
    assert "unreadable: val/cat/pipe.jpg: not a regular file" in done.stdout
    assert done.stdout.splitlines()[-1] == "wrong: 22 images can't be read"


def test_copies_across_splits_and_labels_are_wrong_and_others_a_column(data):
    shutil.copy(data / "train/cat/0.png", data / "train/cat/copy.png")
    shutil.copy(data / "train/cat/1.png", data / "val/cat/copy.png")
    near = Image.open(data / "train/dog/2.png").resize((300, 200), Image.Resampling.BICUBIC)
    near.save(data / "train/cat/near.bmp")
    found = check(data)
    assert found.within_splits == [["train/cat/0.png", "train/cat/copy.png"]]
    assert found.across_splits == [["train/cat/1.png", "val/cat/copy.png"]]
    assert found.two_labels == [["train/cat/near.bmp", "train/dog/2.png"]]
    assert found.wrong == [
        "1 pictures are in more than one split",
        "1 pictures are under more than one label",
    ]
    assert (found.exit_code, found.all.copies) == (1, 3)


@pytest.mark.parametrize(
    ("remove", "add", "reason"),
    [
        (["train/dog"], [], "classes of val are not in train: dog"),
        (["train/dog", "val/dog"], [], "train has only one class: every answer would be right"),
        (["val"], [], "there is no val"),
        ([], ["train/yak"], "classes of train without images: yak"),
        ([], ["val/yak "], 'classes of val without images: "yak "'),
    ],
)
def test_classes_that_make_training_wrong_are_named(data, remove, add, reason):
    for name in remove:
        shutil.rmtree(data / name)
    for name in add:
        (data / name).mkdir()
    found = check(data)
    assert (found.wrong[0], found.exit_code) == (reason, 1)


def test_what_is_not_divided_yet_is_looked_at_and_told_so(data):
    done = run(data / "train", "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["all"]["images"]) == (1, {"all": 8})
    assert found["wrong"] == [
        f"there is no train: divide it with irv2 data split {data / 'train'} OUT"
    ]


def test_imbalance_and_classes_without_val_are_remarks(data):
    for i in range(36):
        picture(100 + i).save(data / f"train/cat/more{i}.png")
    shutil.rmtree(data / "val/dog")
    found = check(data)
    assert found.exit_code == 0
    assert found.remarks == [
        "classes without images in val: dog",
        "the largest class of train, cat, has 40 images, the smallest, dog, 4",
    ]


def test_the_sheet_shows_wrong_copies_and_some_of_each_class(data, tmp_path):
    shutil.copy(data / "train/cat/1.png", data / "val/cat/copy.png")
    assert run(data, "-o", tmp_path / "sheet.png").exit_code == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 168 + 8, 3 * 200 + 16 + 8)  # 13 tiles
    done = run(data, "-o", tmp_path / "gone/sheet.png")
    assert (done.exit_code, "no such folder" in done.stderr) == (2, True)
