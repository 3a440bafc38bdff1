"""What is found in a source, and in which order, and how it is read."""

import tarfile

import pytest
from batch_folder import ALL_NAMES, write_folder

from irv2.batch import source as module
from irv2.batch.source import Picture, Source, read_names, write_names
from irv2.errors import ImageError, InputError


@pytest.fixture
def pictures(tmp_path):
    return write_folder(tmp_path / "pictures")


def listed(source: Source, path) -> list[Picture]:
    _, num = write_names(source, path)
    found = list(read_names(path))
    assert len(found) == num
    return found


def test_every_picture_of_a_folder_and_its_shards_is_found_once_and_sorted(pictures, tmp_path):
    names = [picture.name for picture in listed(Source(pictures), tmp_path / "names")]
    assert names == ALL_NAMES


def test_a_list_is_the_same_however_few_names_are_sorted_at_a_time(pictures, tmp_path, monkeypatch):
    at_once = write_names(Source(pictures), tmp_path / "at once")
    monkeypatch.setattr(module, "NAMES_AT_A_TIME", 2)
    assert write_names(Source(pictures), tmp_path / "in parts") == at_once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "in parts", "pictures"]


def test_what_is_found_can_be_read_and_what_cannot_is_named(pictures, tmp_path):
    source = Source(pictures)
    for picture in listed(source, tmp_path / "names"):
        if picture.name == "gone.jpg":
            with pytest.raises(ImageError, match=r"^gone\.jpg: No such file"):
                source.read(picture)
        elif picture.shard:
            assert source.read(picture) == (pictures / "0.jpg").read_bytes()
        else:
            assert source.read(picture) == (pictures / picture.name).read_bytes()
    with pytest.raises(ImageError, match=r"^pipe\.jpg: is no file"):
        source.read(Picture("pipe.jpg"))
    with pytest.raises(ImageError, match="File name too long"):
        source.read(Picture("x" * 5000))


@pytest.mark.parametrize("long", [False, True])
def test_a_picture_of_a_shard_that_was_written_again_is_an_error_unless_it_lies_there(
    long, tmp_path
):
    def write(*names: str) -> None:
        with tarfile.open(tmp_path / "shard.tar", "w") as shard:
            for name in names:
                (tmp_path / "content").write_bytes(f"{name[-5:]} has 20 bytes".encode())
                shard.add(tmp_path / "content", name)

    folder = "\xe9" * 200 if long else "f"  # a long name has a header of its own
    one, two, three = (f"{folder}/{n}.jpg" for n in (1, 2, 3))
    source = Source(tmp_path)
    write(one, two)
    first, second = listed(source, tmp_path / "names")
    assert source.read(second) == b"2.jpg has 20 bytes"
    for names in ((two, one), (one, three), (one,)):
        write(*names)
        with pytest.raises(ImageError, match=r"2\.jpg: lies elsewhere in its shard, or no longer"):
            source.read(second)
    assert source.read(first) == b"1.jpg has 20 bytes"
    (tmp_path / "shard.tar").unlink()
    with pytest.raises(ImageError, match=r"1\.jpg: No such file"):
        source.read(first)


def test_a_list_needs_no_labels_and_a_repeated_name_is_left_out(pictures, tmp_path, caplog):
    path = pictures / "list.csv"
    path.write_text("id,path\n1,b/2.jpg\n2,./0.jpg\n\n3,b/../b/2.jpg\n4,nowhere.jpg\n")
    names = [picture.name for picture in listed(Source(path), tmp_path / "names")]
    assert names == ["0.jpg", "b/2.jpg", "nowhere.jpg"]
    assert f"{path}: 1 repeated names are left out" in caplog.text
    assert Source(path).read(Picture("0.jpg")) == (pictures / "0.jpg").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: nothing in the file; expected a first line with a column path"),
        (b"name\na.jpg\n", "line 1: 'name'; expected a first line with a column path"),
        (b"path\n", "no rows below its first line"),
        (b"path,label\na.jpg,1\nb.jpg\n", "line 3: 1 columns; expected 2"),
        (b"path,label\na.jpg,1\n,2\n", "line 3: no path"),
        (b"path\na.jpg\n\xff.jpg\n", "line 3: not UTF-8"),
        (b'path\n"a.jpg\n', "expected CSV"),
    ],
)
def test_a_bad_list_is_one_line_that_names_its_line(content, message, tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        write_names(Source(path), tmp_path / "names")
    assert message in str(caught.value).replace('"', "'")


def test_a_source_that_cannot_be_listed_is_named(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("empty", "no image files in it"),
        ("nowhere", "no such folder"),
        ("pictures/0.jpg", "a single file; expected a folder, or a list"),
    ):
        with pytest.raises(InputError, match=message):
            write_names(Source(tmp_path / name), tmp_path / "names")
    (pictures / "b" / "shard.tar").write_bytes(b"x" * 2000)
    with pytest.raises(InputError, match=r"shard\.tar: .*expected a whole tar file"):
        write_names(Source(pictures), tmp_path / "names")


def test_what_is_too_large_to_be_decoded_is_not_read(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)  # a hole: no disk would hold it, nor any memory
    for picture in (Picture("huge.jpg"), Picture("a.tar/huge.jpg", "a.tar", "512", str(2**40))):
        with pytest.raises(ImageError, match=r"huge\.jpg: 1099511627776 bytes; expected at most"):
            Source(tmp_path).read(picture)
