"""Image folders: what is found, what is refused, and when the index is made anew."""

import logging
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irv2.data.dataset import find_images, open_split
from irv2.errors import DataError


def write_image(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes of 3, 2 and 1 images, made in an order that is not the sorted one."""
    folder = tmp_path / "data"
    for name, count in (("zebra", 1), ("ant", 3), ("Moth", 2)):
        for i in reversed(range(count)):
            write_image(folder / "train" / name / f"{i}.png")
    return folder


def next_tick() -> None:
    """Wait until a folder's time of change must differ: the kernel's clock steps by up to 10 ms."""
    time.sleep(0.03)


def index_files(cache_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (cache_dir / "irv2" / "index").glob("*")}


def test_classes_and_files_are_sorted_and_labels_follow(data):
    folder = open_split(data, "train")
    assert folder.classes == ("Moth", "ant", "zebra")
    assert folder.files == (
        "Moth/0.png",
        "Moth/1.png",
        "ant/0.png",
        "ant/1.png",
        "ant/2.png",
        "zebra/0.png",
    )
    assert folder.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert folder.labels.dtype == np.int64
    assert len(folder) == 6
    assert folder.path(5) == data / "train/zebra/0.png"


def test_labels_follow_the_classes_of_training_where_val_lacks_one(data):
    write_image(data / "val/zebra/0.png")
    folder = open_split(data, "val", ("Moth", "ant", "zebra"))
    assert folder.classes == ("Moth", "ant", "zebra")
    assert folder.labels.tolist() == [2]


def test_a_class_in_val_that_is_not_in_train_is_named(data):
    write_image(data / "val/ant/0.png")
    write_image(data / "val/yak/0.png")
    with pytest.raises(DataError, match="class yak is unknown") as caught:
        open_split(data, "val", open_split(data, "train").classes)
    assert str(caught.value).endswith("the 3 classes of training; remove or rename the folder")


def test_the_sample_does_not_fit_another_network_and_needs_no_renaming(sample):
    with pytest.raises(DataError, match="class 0 is unknown to the network") as caught:
        open_split(sample, "val", ("tench", "goldfish"))
    assert str(caught.value).endswith("; pass --data DIR with this network's classes")


def test_an_empty_class_is_named(data):
    (data / "train/empty").mkdir()
    with pytest.raises(DataError, match=r"train/empty: no images; expected at least one"):
        open_split(data, "train")


def test_a_missing_split_and_a_missing_folder_say_what_is_expected(data, tmp_path):
    with pytest.raises(DataError, match=r"no folder val/ in it, but train/; expected train/C"):
        open_split(data, "val")
    with pytest.raises(DataError, match=r"gone: no such folder"):
        open_split(tmp_path / "gone", "train")


def test_a_split_without_class_folders_is_refused(tmp_path):
    write_image(tmp_path / "train" / "0.png")
    with pytest.raises(DataError, match="no class folders"):
        open_split(tmp_path, "train")


def test_a_text_file_named_jpg_is_counted_and_named(data):
    (data / "train/ant/notes.jpg").write_text("buy milk")
    (data / "train/zebra/notes.png").write_text("buy more milk")
    with pytest.raises(
        DataError,
        match=r"2 files are no images: ant/notes\.jpg, zebra/notes\.png; .*--bad-images skip",
    ):
        open_split(data, "train")


def test_skipping_bad_files_leaves_them_out_and_says_so(data, caplog):
    (data / "train/ant/notes.jpg").write_text("buy milk")
    with caplog.at_level(logging.WARNING):
        folder = open_split(data, "train", bad_images="skip")
    assert len(folder) == 6
    assert "ant/notes.jpg" not in folder.files
    assert "1 files are no images and are left out: ant/notes.jpg" in caplog.text


def test_a_pipe_a_socket_and_a_device_are_no_images(data, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(data / "train/ant")  # a socket's path is short
    os.mkfifo("pipe.jpg")  # whoever opened it would wait for ever
    Path("device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        with pytest.raises(DataError, match=r"3 files are no images .*: ant/device"):
            open_split(data, "train")
        kept = open_split(data, "train", bad_images="skip")
    assert "not a regular file: 3" in caplog.text
    found = "".join([*kept.files, *find_images(data).files])
    assert not [kind for kind in ("pipe", "socket", "device") if kind in found]


def test_a_class_of_nothing_but_bad_files_is_refused_even_when_skipping(data):
    (data / "train/yak").mkdir()
    (data / "train/yak/notes.jpg").write_text("buy milk")
    with pytest.raises(DataError, match="yak: no images"):
        open_split(data, "train", bad_images="skip")


def test_only_the_first_five_of_many_bad_files_are_named(data):
    for i in range(7):
        (data / f"train/ant/bad{i}.jpg").write_text("x")
    with pytest.raises(DataError, match=r"7 files are no images: .*bad4\.jpg, \.\.\.;"):
        open_split(data, "train")


def test_other_files_and_hidden_folders_are_no_images_and_counted_at_every_start(data, caplog):
    for name in ("ant/notes.txt", "README", "zebra/2024/0.png", ".DS_Store", ".cache/0.png"):
        path = data / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    for _ in range(2):
        assert len(open_split(data, "train")) == 6
    first, again = [record.getMessage() for record in caplog.records]
    assert f"train: 3 files are left out, {data}/train/README for one" in first
    assert again == first


def test_images_alone_are_no_warning(data, caplog):
    write_image(data / "train/ant/9.jpeg")
    (data / "train/ant/9.jpeg").rename(data / "train/ant/9.JFIF")
    assert "ant/9.JFIF" in open_split(data, "train").files
    assert not caplog.text


def test_a_wrong_extension_among_images_is_no_matter(data):
    shutil.copy(data / "train/ant/0.png", data / "train/ant/9.JPEG")
    assert "ant/9.JPEG" in open_split(data, "train").files


def test_the_index_is_made_once(data, cache_dir):
    before = index_files(cache_dir)
    first = open_split(data, "train")
    written = index_files(cache_dir)
    assert len(written) == len(before) + 1
    second = open_split(data, "train")
    assert index_files(cache_dir) == written
    assert (second.files, second.labels.tolist()) == (first.files, first.labels.tolist())


def test_the_index_follows_files_and_classes_that_come_and_go(data):
    assert len(open_split(data, "train")) == 6
    next_tick()
    write_image(data / "train/ant/new.png")
    assert "ant/new.png" in open_split(data, "train").files
    next_tick()
    (data / "train/ant/new.png").unlink()
    assert "ant/new.png" not in open_split(data, "train").files
    next_tick()
    (data / "train/ant/0.png").rename(data / "train/ant/renamed.png")
    assert "ant/renamed.png" in open_split(data, "train").files
    write_image(data / "train/yak/0.png")
    assert open_split(data, "train").classes == ("Moth", "ant", "yak", "zebra")
    shutil.rmtree(data / "train/yak")
    assert open_split(data, "train").classes == ("Moth", "ant", "zebra")


def test_files_added_while_their_folder_keeps_its_time_are_found(data):
    """As object stores, image layers and restored backups leave them."""
    folder = data / "train/ant"
    before = folder.stat()
    assert len(open_split(data, "train")) == 6
    for i in range(36):
        write_image(folder / f"more{i}.png")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(open_split(data, "train")) == 42


@pytest.mark.parametrize("kept", ["size", "time"])
def test_an_image_spoilt_in_place_is_found_by_its_size_or_time(data, kept):
    path = data / "train/ant/1.png"
    open_split(data, "train")
    before = path.stat()
    next_tick()
    path.write_bytes(b"x" * (before.st_size if kept == "size" else 9))
    if kept == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match=r"1 files are no images: ant/1\.png"):
        open_split(data, "train")


def test_an_image_mended_in_place_is_no_longer_bad(data):
    bad = data / "train/ant/1.png"
    whole = bad.read_bytes()
    bad.write_text("half a download")
    with pytest.raises(DataError, match=r"ant/1\.png"):
        open_split(data, "train")
    times = bad.stat()
    bad.write_bytes(whole)
    os.utime(bad, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "ant/1.png" in open_split(data, "train").files


@pytest.mark.parametrize("content", [b'{"state": ', b'{"state": "\xff"}'])
def test_a_damaged_index_is_made_anew(data, cache_dir, caplog, content):
    before = index_files(cache_dir)
    expected = open_split(data, "train").files
    [index] = index_files(cache_dir).keys() - before.keys()
    index.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert open_split(data, "train").files == expected
    assert f"{index}: unreadable index" in caplog.text


def test_two_folders_of_one_name_have_their_own_index(data, tmp_path):
    other = tmp_path / "elsewhere" / "data"
    write_image(other / "train/cat/0.png")
    assert open_split(other, "train").classes == ("cat",)
    assert open_split(data, "train").classes == ("Moth", "ant", "zebra")


def test_a_limit_spreads_evenly_over_the_classes(data):
    folder = open_split(data, "train")
    kept = {n: folder.first(n).files for n in range(1, 7)}
    assert kept[1] == ("Moth/0.png",)
    assert kept[3] == ("Moth/0.png", "ant/0.png", "zebra/0.png")
    assert kept[5] == ("Moth/0.png", "Moth/1.png", "ant/0.png", "ant/1.png", "zebra/0.png")
    assert kept[6] == folder.files
    assert folder.first(3).labels.tolist() == [0, 1, 2]
    assert folder.first(2).classes == folder.classes


def test_a_limit_beyond_the_folder_or_none_keeps_it_all(data):
    folder = open_split(data, "train")
    assert folder.first(None) is folder
    assert folder.first(100) is folder


@pytest.mark.parametrize("where", ["class", "split"])
def test_a_folder_whose_name_is_not_utf_8_is_refused_in_one_line(data, where):
    odd = os.fsdecode(b"caf\xe9")
    if where == "class":
        (data / "train" / "ant").rename(data / "train" / odd)
    else:
        data = data.rename(data.with_name(odd))
    with pytest.raises(DataError, match="is not UTF-8"):
        open_split(data, "train")


def test_what_macos_adds_is_left_out_and_counted(data, caplog):
    for name in ("ant/._0.png", "zebra/.hidden.jpg", "__MACOSX/._0.png"):
        path = data / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    folder = open_split(data, "train")
    assert (len(folder), folder.classes) == (6, ("Moth", "ant", "zebra"))
    assert "2 hidden files, such as ._a.jpg of macOS, are left out" in caplog.text
    assert len(find_images(data)) == 6


def test_composed_and_decomposed_names_are_one_class(data, caplog):
    composed, decomposed = "caf\xe9", "cafe\u0301"
    write_image(data / "train" / composed / "0.png")
    write_image(data / "train" / decomposed / "1.png")
    folder = open_split(data, "train")
    assert folder.classes == ("Moth", "ant", composed, "zebra")
    assert folder.labels.tolist().count(2) == 2
    assert "caf\xe9, written composed and decomposed (Unicode NFC and NFD), is one" in caplog.text
    write_image(data / "val" / decomposed / "0.png")
    assert open_split(data, "val", folder.classes).labels.tolist() == [2]
    assert open_split(data, "val", ("x", decomposed)).labels.tolist() == [1]


def test_names_that_differ_by_case_or_a_space_are_shown_in_quotes(data, caplog):
    write_image(data / "train" / "ant " / "0.png")
    write_image(data / "train" / "moth" / "0.png")
    classes = open_split(data, "train").classes
    assert classes == ("Moth", "ant", "ant ", "moth", "zebra")
    assert '"ant" and "ant " are two classes' in caplog.text
    assert '"Moth" and "moth" are two classes' in caplog.text
    write_image(data / "val" / "zebra " / "0.png")
    with pytest.raises(DataError, match=r'class "zebra " is unknown .*; rename it to "zebra"$'):
        open_split(data, "val", classes)


def test_broken_links_are_counted_in_one_line(data, caplog):
    for i in range(2000):
        (data / f"train/ant/gone{i}.jpg").symlink_to("/nowhere")
    os.mkfifo(data / "train/zebra/pipe.jpg")
    folder = open_split(data, "train", bad_images="skip")
    assert len(folder) == 6
    [line] = [record.getMessage() for record in caplog.records]
    assert "2001 files are no images (broken link: 2000, not a regular file: 1)" in line
    assert len(line) < 500


def test_one_class_alone_is_said(tmp_path, caplog):
    write_image(tmp_path / "train/cat/0.png")
    assert open_split(tmp_path, "train", ("cat",)).classes == ("cat",)
    assert "train: only one class, cat: every answer is right" in caplog.text


def test_classes_of_the_network_without_images_are_said(data, caplog):
    open_split(data, "train", ("Moth", "ant", "yak", "zebra", " emu"))
    assert 'train: no images of 2 of the 5 classes: yak, " emu"' in caplog.text


def test_classes_are_in_the_order_of_their_characters(tmp_path):
    for name in ("0", "1", "2", "10", "a", "B"):
        write_image(tmp_path / "train" / name / "0.png")
    assert open_split(tmp_path, "train").classes == ("0", "1", "10", "2", "B", "a")
