"""Lists: which rows are images of which split, and what is refused with its line."""

from pathlib import Path

import pytest
from PIL import Image

from irv2.data.dataset import find_images, open_split, splits_of, unread_split
from irv2.data.hashes import hash_files
from irv2.data.shard_writer import write_shards
from irv2.errors import DataError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder pictures/ with 0.png to 29.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(30):
        Image.new("RGB", (4, 4), (8 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def write_list(pictures: Path, *rows: str, header: str = "path,label,split") -> Path:
    path = pictures.parent / "list.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_rows_are_sorted_into_splits_and_classes(pictures):
    path = write_list(
        pictures,
        "pictures/2.png,zebra,train",
        "pictures/./1.png,ant,train",
        f"{pictures}/0.png,ant,val",
        "",
        "pictures/10.png,ant,train",
    )
    assert splits_of(path) == ["train", "val"]
    train = open_split(path, "train")
    assert train.classes == ("ant", "zebra")
    assert train.files == ("pictures/./1.png", "pictures/10.png", "pictures/2.png")
    assert train.labels.tolist() == [0, 0, 1]
    assert (train.data, train.place, train.root) == (path, path, path.parent)
    assert train.read(2) == (pictures / "2.png").read_bytes()
    assert (train.first(2).data, train.select(train.files[1:]).data) == (path, path)
    val = open_split(path, "val", train.classes)
    assert val.read(0) == (pictures / "0.png").read_bytes()
    assert unread_split(path, "train").files == train.files
    assert len(find_images(path)) == 4
    with pytest.raises(DataError, match=r"list\.csv: no rows of split test, but of train, val;"):
        open_split(path, "test")


def test_quotes_a_byte_order_mark_and_other_columns_and_line_ends_are_read(pictures):
    (pictures / "0.png").rename(pictures / 'a, "b" \xe9.png')
    path = pictures.parent / "list.csv"
    text = 'Who,Label,PATH\r\nme,"dog, big","pictures/a, ""b"" \xe9.png"\r\n,cat,pictures/1.png\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert open_split(path, "train").classes == ("cat", "dog, big")


def test_without_a_column_split_a_share_of_each_class_is_for_validation(pictures, caplog):
    rows = [f"pictures/{i}.png,{'ant' if i < 20 else 'bee'}" for i in range(29)]
    rows.append("pictures/29.png,single")
    caplog.set_level("INFO")
    path = write_list(pictures, *rows, header="path,label")
    train, val = open_split(path, "train"), open_split(path, "val")
    assert not set(train.files) & set(val.files)
    assert [val.labels.tolist().count(label) for label in range(2)] == [3, 1]
    assert [train.labels.tolist().count(label) for label in range(3)] == [17, 8, 1]
    assert "15 % of each class are for validation" in caplog.text
    reordered = write_list(pictures, *reversed(rows), header="path,label")
    assert open_split(reordered, "val").files == val.files


def test_labels_in_composed_and_decomposed_unicode_are_one_class(pictures, caplog):
    path = write_list(pictures, "pictures/0.png,caf\xe9,train", "pictures/1.png,cafe\u0301,train")
    assert open_split(path, "train").classes == ("caf\xe9",)
    assert "is one class" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["pictures/0.png,ant,train", *[f"gone{i}.png,ant,train" for i in range(18)]],
            "line 3: gone0.png: missing (and 17 more); expected image files, relative to",
        ),
        (
            ["pictures/0.png,cat,train", "pictures/1.png,Cat,train", "pictures/2.png,cat ,val"],
            'line 3: label "Cat", but "cat" on line 2 (and 1 more); expected one spelling',
        ),
        (
            ["pictures/0.png,cat,train", "pictures/../pictures/0.png,cat,train"],
            "line 3: pictures/../pictures/0.png is on line 2 too; expected each file once",
        ),
        (
            ["pictures/0.png,cat,train", "pictures/0.png,dog,train"],
            "line 3: pictures/0.png is on line 2 too, there cat train;",
        ),
        (
            ["pictures/0.png,cat,train", "pictures/1.png", "a,b", "a,b.png,cat,train"],
            "line 3: 1 columns (and 2 more); expected 3, as in the first line; put a name",
        ),
        (["pictures/0.png,,train"], "line 2: no path or no label"),
        (["pictures/0.png,cat,valid"], "line 2: split 'valid'; expected train, val or test"),
        (['pictures/0.png,"cat,train'], "line 2: "),
        (['pictures/0.png,"c"at,train'], "line 2: "),
        (["pictures/0.png,cat\0,train", "pictures/\0.png,cat,train"], "line 3: "),
        ([], "list.csv: no rows below its first line; expected one for each image"),
    ],
)
def test_a_bad_row_is_one_line_with_its_number(pictures, rows, message):
    with pytest.raises(DataError) as caught:
        open_split(write_list(pictures, *rows), "train")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{pictures.parent}/list.csv")


def test_missing_files_are_skipped_where_asked_for(pictures, caplog):
    path = write_list(pictures, "pictures/0.png,ant,train", "gone.png,ant,train")
    assert open_split(path, "train", bad_images="skip").files == ("pictures/0.png",)
    assert "1 files are no images (missing: 1) and are left out: gone.png" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na.png,caf\xe9\n".encode("latin-1"), "line 2: not UTF-8; expected UTF-8;"),
        ("path,label\na.png,cat\n".encode("utf-16"), "line 1: UTF-16; expected UTF-8; save the"),
        (
            b"a.png,cat\n",
            'line 1: "a.png,cat"; expected a first line path,label or path,label,split; add that',
        ),
        (
            b"path;label\na;b\n",
            'line 1: "path;label"; expected a first line path,label or path,label,split; sep',
        ),
        (b"path,label,label\n", "line 1: "),
        (b"", "line 1: nothing in the file; expected a first line path,label or path,label,split;"),
        (b"\n\n", "line 1: nothing in the file; "),
    ],
)
def test_a_file_that_is_no_such_list_is_refused(pictures, content, message):
    path = pictures.parent / "list.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_split(path, "train")
    assert f"list.csv, {message}" in str(caught.value)


def test_a_label_that_training_lacks_is_named_with_its_line(pictures):
    path = write_list(
        pictures, "pictures/0.png,ant,train", "pictures/1.png,yak,val", "pictures/2.png,zoo,val"
    )
    with pytest.raises(DataError, match=r"line 3: class yak is unknown .* \(and 1 more\)"):
        open_split(path, "val", ("ant",))
    with pytest.raises(DataError, match=r'line 3: class yak .*; rename it to "Yak"'):
        open_split(path, "val", ("Yak", "zoo"))


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: no such file; expected a list of images"):
        open_split(tmp_path / "gone.csv", "train")


def test_two_lists_in_one_folder_have_their_own_index(pictures):
    first = write_list(pictures, "pictures/0.png,ant,train", "pictures/1.png,ant,val")
    other = first.with_name("other.csv")
    first.rename(other)
    write_list(pictures, "pictures/2.png,bee,train")
    for _ in range(2):
        assert open_split(first, "train").files == ("pictures/2.png",)
        assert open_split(other, "train").files == ("pictures/0.png",)
        assert open_split(other, "val").files == ("pictures/1.png",)


def test_a_list_becomes_shards(pictures, tmp_path):
    other = pictures.parent / "0.png"
    (pictures / "0.png").rename(other)
    path = write_list(
        pictures, f"{other},ant,train", "pictures/2.png,bee,train", "pictures/1.png,ant,test"
    )
    assert write_shards(path, tmp_path / "shards", 10_000) == 3
    for split in ("train", "test"):
        found, expected = open_split(tmp_path / "shards", split), open_split(path, split)
        assert hash_files(found) == hash_files(expected)
        assert found.labels.tolist() == expected.labels.tolist()
