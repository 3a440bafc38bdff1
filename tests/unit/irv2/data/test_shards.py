"""Shards: what is written, that it reads like the folder, and what is said of broken ones."""

import tarfile
import time

import pytest
from shards_of import SHARD_BYTES

from irv2.data.dataset import ImageFolder, open_split
from irv2.data.shard_writer import write_shards
from irv2.errors import DataError, ImageError, ImageReason, Irv2Error


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
    with pytest.raises(
        ImageError, match=r"000000\.tar/Moth/0\.png: ends after 600 bytes"
    ) as caught:
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
