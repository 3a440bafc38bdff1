"""Shards are written whole, the same every time, in WebDataset's layout."""

import json
import tarfile
import time

import pytest
from shards_of import SHARD_BYTES

from irv2.data.dataset import open_split
from irv2.data.shard_writer import write_shards
from irv2.errors import DataError, Irv2Error


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


def test_every_picture_that_cannot_be_read_is_named_and_nothing_is_written(
    source, tmp_path, caplog
):
    for name in ("train/ant/1.png", "val/zebra/0.png"):
        whole = (source / name).read_bytes()
        (source / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Irv2Error, match=r"2 images can't be read.*--bad-images skip") as caught:
        write_shards(source, tmp_path / "out", SHARD_BYTES)
    assert caught.value.exit_code == 1
    lines = [r.getMessage() for r in caplog.records if r.name == "irv2.data.shard_writer"]
    named = [line.split(": ")[0] for line in lines]
    assert named == [str(source / "train/ant/1.png"), str(source / "val/zebra/0.png")]
    assert not list(tmp_path.glob("*out*"))


def test_pictures_that_cannot_be_read_are_left_out_when_skipping(source, tmp_path, caplog):
    whole = (source / "train/ant/1.png").read_bytes()
    (source / "train/ant/1.png").write_bytes(whole[: len(whole) // 2])
    assert write_shards(source, tmp_path / "out", SHARD_BYTES, bad_images="skip") == 10
    assert "ant/0.png" in "".join(open_split(tmp_path / "out", "train").files)
    assert "ant/1.png" not in "".join(open_split(tmp_path / "out", "train").files)
    assert f"left out: {source / 'train/ant/1.png'}: " in caplog.text
