"""Shards: what is written, that it reads like the folder, and what is said of broken ones."""

import json
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irv2.data.dataset import ImageFolder, open_split
from irv2.data.shard_writer import write_shards
from irv2.errors import DataError, ImageError, ImageReason, Irv2Error

SHARD_BYTES = 8_000  # a few of these small images


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """train/ with three classes of 3, 2 and 4 images, val/ with one of them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "folder"
    counts = {"train/Moth": 3, "train/ant": 2, "train/zebra": 4, "val/zebra": 2}
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Path:
    assert write_shards(source, tmp_path / "shards", SHARD_BYTES) == 11
    return tmp_path / "shards"


def contents(folder: ImageFolder) -> list[tuple[bytes, int]]:
    return [(folder.read(i), int(folder.labels[i])) for i in range(len(folder))]


def test_shards_hold_the_folders_images_in_its_order(source, shards):
    assert len(list((shards / "train").glob("*.tar"))) > 1
    for split in ("train", "val"):
        folder = open_split(source, split, ("Moth", "ant", "zebra"))
        sharded = open_split(shards, split, ("Moth", "ant", "zebra"))
        assert contents(sharded) == contents(folder)
        assert sharded.classes == folder.classes
        assert contents(sharded.first(2)) == contents(folder.first(2))


def test_labels_follow_the_classes_of_training(shards):
    # Another order than in shards.json, and one class more.
    assert set(open_split(shards, "val", ("zebra", "ant", "x", "Moth")).labels) == {0}
    with pytest.raises(DataError, match="class zebra is unknown to the network"):
        open_split(shards, "val", ("ant", "Moth"))


def test_the_layout_is_webdatasets(source, shards):
    with tarfile.open(shards / "train/000000.tar") as shard:
        names = shard.getnames()
        first = shard.extractfile("Moth/0.png").read()
        label = shard.extractfile("Moth/0.cls").read()
    assert names[:4] == ["Moth/0.png", "Moth/0.cls", "Moth/1.png", "Moth/1.cls"]
    assert first == (source / "train/Moth/0.png").read_bytes()
    assert label == b"0"
    written = json.loads((shards / "train/shards.json").read_text())
    assert written == {"classes": ["Moth", "ant", "zebra"], "num_images": 9}


def test_a_key_has_no_point_and_two_images_never_share_one(source, tmp_path):
    image = source / "train/ant/0.png"
    image.rename(image.with_name("a.b.PNG"))
    write_shards(source, tmp_path / "out", SHARD_BYTES)
    assert any("ant/a_b.png" in file for file in open_split(tmp_path / "out", "train").files)
    time.sleep(0.03)  # the index is made anew when the folder's time differs
    (source / "train/ant/a_b.jpg").write_bytes((source / "train/ant/a.b.PNG").read_bytes())
    with pytest.raises(DataError, match=r"ant/a.b.*: another image has this name; rename it"):
        write_shards(source, tmp_path / "other", SHARD_BYTES)
    assert not list(tmp_path.glob("*other*"))


def test_the_same_images_make_the_same_shards(source, shards, tmp_path):
    write_shards(source, tmp_path / "again", SHARD_BYTES)
    for path in shards.rglob("*.tar"):
        assert (tmp_path / "again" / path.relative_to(shards)).read_bytes() == path.read_bytes()


def test_shards_are_never_written_over_something(source, shards):
    with pytest.raises(DataError, match="already exists"):
        write_shards(source, shards, SHARD_BYTES)


def test_a_shard_cut_off_anywhere_is_named_when_it_is_opened(shards):
    path = shards / "train/000001.tar"
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # tar pads with zeros beyond its end
    for length in [0, 1, 511, 512, 700, *range(1024, end, 512), end + 512, end + 1023]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"000001\.tar: .*expected a whole tar file"):
            open_split(shards, "train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "000000.tar").unlink(), "in its shards; expected 9 by shards.json"),
        (lambda root: (root / "000000.tar").write_bytes(b"x" * 2000), "expected a whole tar file"),
        (lambda root: (root / "shards.json").write_text("{}"), r"shards\.json: .*classes"),
        (
            lambda root: (root / "shards.json").write_bytes(b'{"classes": ["\xff"]}'),
            r"shards\.json: .*; expected classes and num_images",
        ),
        (
            lambda root: (root / "shards.json").write_text('{"classes": ["a"], "num_images": 9}'),
            "label 1; expected 0 to 0",
        ),
    ],
)
def test_other_damage_is_one_clear_line(shards, damage, message):
    damage(shards / "train")
    with pytest.raises(Irv2Error, match=message) as caught:
        open_split(shards, "train")
    assert "\n" not in str(caught.value)


def test_an_image_without_its_label_is_named(shards):
    with tarfile.open(shards / "train/000000.tar", "w") as shard:
        shard.add(__file__, "ant/0.png")
    with pytest.raises(DataError, match=r"no ant/0\.cls beside 000000\.tar/ant/0\.png"):
        open_split(shards, "train")


def test_a_shard_with_a_member_of_impossible_size_is_named(shards):
    path = shards / "train/000000.tar"
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + b"\x7f" * 11  # a size in base 256
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected a whole tar file"):
        open_split(shards, "train")


def test_a_shard_cut_off_after_it_was_indexed_is_named(shards):
    folder = open_split(shards, "train")
    path = shards / "train/000000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ImageError, match=r"000000\.tar: ends after 600 bytes") as caught:
        folder.read(0)
    assert caught.value.reason is ImageReason.TRUNCATED


def test_the_index_follows_shards_that_are_written_anew(source, shards, tmp_path):
    assert len(open_split(shards, "train")) == 9
    (source / "train/ant/0.png").unlink()
    time.sleep(0.03)  # the index is made anew when the folder's time differs
    write_shards(source, tmp_path / "new", SHARD_BYTES)
    for path in (tmp_path / "new/train").iterdir():
        path.replace(shards / "train" / path.name)
    assert contents(open_split(shards, "train")) == contents(open_split(source, "train"))
