"""A split is the same everywhere, keeps copies together, and appears whole or not at all."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from irv2.cli.main import main
from irv2.data import split as module
from irv2.data.dataset import ImageFolder, open_split, splits_of
from irv2.data.facts import Facts
from irv2.data.hashes import hash_files
from irv2.data.split import choose_sides, split
from irv2.errors import DataError, InputError

COUNTS = {"ant": 20, "bee": 7, "single": 1}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Class folders of 20, 7 and 1 different pictures."""
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (tmp_path / "source" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "source" / name / f"{i}.png")
    return tmp_path / "source"


def contents(folder: ImageFolder) -> set[str]:
    return set(hash_files(folder))


def test_each_class_is_divided_by_its_shares_and_too_small_ones_are_named(source, tmp_path):
    found = split(source, tmp_path / "out", {"val": 15, "test": 10})
    assert found.classes == {
        "ant": {"train": 15, "val": 3, "test": 2},
        "bee": {"train": 5, "val": 1, "test": 1},
        "single": {"train": 1, "val": 0, "test": 0},
    }
    assert found.too_small == ["single"]
    assert "too few different pictures for every split: single" in found.to_text()
    assert splits_of(tmp_path / "out") == ["train", "val", "test"]
    train = open_split(tmp_path / "out", "train")
    val = open_split(tmp_path / "out", "val", train.classes)
    assert (len(train), len(val)) == (21, 4)
    assert not contents(train) & contents(val)


def test_other_names_give_the_same_split_and_another_seed_another(source, tmp_path):
    split(source, tmp_path / "out", {"val": 20})
    renamed = tmp_path / "renamed"
    for path in source.rglob("*.png"):
        target = renamed / path.parent.name / f"x{99 - int(path.stem)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    split(renamed, tmp_path / "again", {"val": 20})
    split(source, tmp_path / "other", {"val": 20}, seed=1)
    val = contents(open_split(tmp_path / "out", "val"))
    assert contents(open_split(tmp_path / "again", "val")) == val
    assert contents(open_split(tmp_path / "other", "val")) != val


def test_copies_and_near_copies_are_on_one_side(source, tmp_path):
    for i in range(20):
        path = source / f"ant/{i}.png"
        shutil.copy(path, source / f"ant/copy{i}.png")
        Image.open(path).resize((300, 200), Image.Resampling.BICUBIC).save(source / f"bee/x{i}.bmp")
    found = split(source, tmp_path / "out", {"val": 30})
    assert found.num_copies == 40
    side_of = {}
    for side in ("train", "val"):
        for path in (tmp_path / "out" / side).rglob("*"):
            if path.is_file() and path.parent.name != "single":
                is_copy = path.parent.name == "ant" or path.name.startswith("x")
                key = int("".join(filter(str.isdigit, path.stem))) if is_copy else path
                side_of.setdefault(key, set()).add(side)
    assert all(len(sides) == 1 for sides in side_of.values())
    assert {"train", "val"} == set().union(*side_of.values())


def test_a_class_of_one_picture_many_times_stays_in_train():
    facts = [Facts(sha256="a")] * 5 + [Facts(sha256=c) for c in "bc"]
    sides = choose_sides([0] * 5 + [1] * 2, [0] * 5 + [1, 2], facts, {"val": 15}, 0)
    assert sides[:5] == ["train"] * 5
    assert Counter(sides[5:]) == {"train": 1, "val": 1}


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_files_are_linked_or_copied(source, tmp_path, monkeypatch, link):
    monkeypatch.chdir(tmp_path)
    split(Path("source"), Path("out"), {"val": 15}, link=link)
    [path] = (tmp_path / "out/train/single").iterdir()
    assert path.is_symlink() == (link == "symbolic")
    assert (path.stat().st_ino == (source / "single/0.png").stat().st_ino) == (link != "copy")


def test_a_list_becomes_a_folder_or_a_list(source, tmp_path):
    rows = [f"source/{p.parent.name}/{p.name},{p.parent.name}" for p in source.rglob("*.png")]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "elsewhere").mkdir()
    split(source, tmp_path / "out", {"val": 20})
    split(tmp_path / "list.csv", tmp_path / "from_list", {"val": 20})
    split(tmp_path / "list.csv", tmp_path / "elsewhere/new.csv", {"val": 20})
    expected = contents(open_split(tmp_path / "out", "val"))
    assert contents(open_split(tmp_path / "from_list", "val")) == expected
    assert contents(open_split(tmp_path / "elsewhere/new.csv", "val")) == expected
    with pytest.raises(DataError, match="no rows without a split, but of train, val"):
        split(tmp_path / "elsewhere/new.csv", tmp_path / "x", {"val": 20})


def test_files_of_a_list_that_share_a_name_get_numbers(tmp_path):
    rows = ["path,label"]
    for i in range(4):
        (tmp_path / str(i)).mkdir()
        Image.new("RGB", (9, 9), (60 * i, 0, 0)).save(tmp_path / f"{i}/photo", "PNG")
        rows.append(f"{i}/photo,cat")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    split(tmp_path / "list.csv", tmp_path / "out", {"val": 25})
    names = {path.name for path in (tmp_path / "out").rglob("*.png")}
    assert names == {"photo.png", "photo-2.png", "photo-3.png", "photo-4.png"}


def test_a_label_that_no_folder_can_have_needs_a_list(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    (tmp_path / "list.csv").write_text("path,label\n0.png,a/b\n")
    with pytest.raises(DataError, match=r'class "a/b"; expected names .*; write a list instead'):
        split(tmp_path / "list.csv", tmp_path / "out", {"val": 25})


def test_what_is_there_or_divided_or_empty_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out: already exists"):
        split(source, tmp_path / "out", {"val": 15})
    split(source, tmp_path / "done", {"val": 15})
    with pytest.raises(DataError, match="train/, val/ in it: it is divided already"):
        split(tmp_path / "done", tmp_path / "x", {"val": 15})
    with pytest.raises(DataError, match="no images in class folders"):
        split(tmp_path / "out", tmp_path / "x", {"val": 15})


def test_unreadable_images_are_named_or_left_out(source, tmp_path, caplog):
    half = (source / "ant/0.png").read_bytes()[:300]
    (source / "ant/0.png").write_bytes(half)
    (source / "bee/0.png").write_text("x")
    with pytest.raises(DataError, match=r"2 of 28 images can't be read \(ant/0\.png: .*; bee/0"):
        split(source, tmp_path / "out", {"val": 15})
    assert not list(tmp_path.glob("*out*"))
    found = split(source, tmp_path / "out", {"val": 15}, bad_images="skip")
    assert found.num_images == 26
    assert "2 of 28 images can't be read and are left out: ant/0.png" in caplog.text


def test_an_interrupted_split_leaves_nothing(source, tmp_path, monkeypatch):
    def interrupt(_: Path, target: Path) -> None:
        if target.parent.name == "bee":
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_hard_link", interrupt)
    with pytest.raises(KeyboardInterrupt):
        split(source, tmp_path / "out", {"val": 15})
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_another_disk_says_to_copy(source, tmp_path):
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second disk")
    out = memory / f"irv2-test-{os.getpid()}"
    message = r"can't be linked .*; pass --link symbolic or --link copy"
    with pytest.raises(InputError, match=message):
        split(source, out, {"val": 15})
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val", "0.15"], "'0.15' is not a percentage such as 15%"),
        (["--val", "100%"], "'100%' is not a percentage"),
        (["--val", "60%", "--test", "40%"], "100 %; expected less than 100 % together"),
    ],
)
def test_shares_are_percentages(source, tmp_path, options, message):
    done = CliRunner().invoke(main, ["data", "split", str(source), str(tmp_path / "o"), *options])
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
