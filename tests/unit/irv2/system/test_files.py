"""Files: whole or not at all, whatever lies at their place."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from odd_disk import odd_disk
from unreadable import file_in_a_closed_folder, unreadable_paths

from irv2.errors import ImageError, ImageReason, InputError, Irv2Error
from irv2.system.files import files_below, new_folder, no_room, read_encoded, write_atomically


def test_an_atomic_write_replaces_the_file_by_bytes_or_by_a_function(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomically(path, lambda beside: beside.write_text("two") and None)
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_atomic_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half(beside: Path) -> None:
        beside.write_bytes(b"ne")
        raise OSError(28, "no room")

    with pytest.raises(OSError, match="no room"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_leaves_devices_pipes_and_what_links_lead_to(tmp_path):
    pipe, link, linked = (tmp_path / name for name in ("pipe", "link", "linked"))
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_bytes)
        write_atomically(pipe, b"bytes")
        assert read.result() == b"bytes"
    assert pipe.is_fifo()
    linked.write_bytes(b"old")
    link.symlink_to(linked)
    write_atomically(link, b"new")
    assert (link.read_bytes(), linked.read_bytes()) == (b"new", b"old")


@pytest.mark.parametrize("path", [Path("/dev/full"), Path("/no folder/file")])
def test_a_failed_atomic_write_names_the_file_that_was_asked_for(path):
    for content in (b"bytes", lambda place: place.write_bytes(b"bytes") and None):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (the name is what counts)
            write_atomically(path, content)
        assert caught.value.filename == str(path)


def test_readers_never_see_half_of_an_atomic_write(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"a" * 100_000)
    with path.open("rb") as before:
        write_atomically(path, b"b" * 100_000)
        assert before.read() == b"a" * 100_000  # the old file lives on for who has it open
    assert path.read_bytes() == b"b" * 100_000


def test_an_image_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    reasons = {}
    for path in unreadable_paths(tmp_path):
        with pytest.raises(ImageError) as raised:
            read_encoded(path)
        assert (raised.value.what, raised.value.reason) == (path, ImageReason.UNREADABLE)
        reasons[path] = raised.value.got
    assert reasons[tmp_path / "gone.jpg"] == os.strerror(errno.ENOENT)
    assert len(set(reasons.values())) == len(reasons) - 1  # "" is a folder, too


def test_an_image_in_a_closed_folder_is_named_with_the_reason():
    with file_in_a_closed_folder() as file, pytest.raises(ImageError) as raised:
        read_encoded(file)
    assert str(raised.value) == f"{file}: {os.strerror(errno.EACCES)}; expected an image file"


def test_hidden_files_and_what_is_below_hidden_folders_are_passed_over(tmp_path):
    for name in ("a.jpg", "._a.jpg", ".cache/b.jpg", "__MACOSX/c.jpg", "deep/er/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {str(path.relative_to(tmp_path)) for path in files_below(tmp_path)}
    assert found == {"a.jpg", "deep/er/d.jpg"}


WRITE = """
import sys
from pathlib import Path
from irv2.system.files import write_atomically
for name in "ab":
    write_atomically(Path(sys.argv[1], name), b"bytes")
"""


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.EOPNOTSUPP])
def test_a_folder_that_can_not_be_synced_is_named_once_and_used(tmp_path, code):
    done = run_on(odd_disk(tmp_path, fsync=code), WRITE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{tmp_path}: can't be synced ({os.strerror(code)})") == 1
    assert (tmp_path / "b").read_bytes() == b"bytes"


def test_a_disk_that_fails_is_not_taken_for_one_without_syncing(tmp_path):
    done = run_on(odd_disk(tmp_path, fsync=errno.EIO), WRITE, tmp_path)
    assert done.returncode == 1
    assert os.strerror(errno.EIO) in done.stderr


LOCK = """
import fcntl, sys
from irv2.system.files import try_lock
with open(sys.argv[1] + "/lock", "w") as file:
    print(try_lock(file), try_lock(file, fcntl.flock, without_locks=False))
"""


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_knows_no_locks_is_named_once_and_used(tmp_path, code):
    done = run_on(odd_disk(tmp_path, locks=code), LOCK, tmp_path)
    assert (done.returncode, done.stdout) == (0, "True False\n")
    assert done.stderr.count(f"{tmp_path}/lock: can't be locked ({os.strerror(code)})") == 1


def run_on(disk: dict[str, str], program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, env=disk, capture_output=True, text=True, check=False)


def test_a_file_that_the_file_system_can_not_hold_is_not_laid_to_the_limit():
    """As one of 4 GiB on FAT: nothing that is freed or raised would help."""
    error = no_room("big.tar", OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
    assert "expected a file system for files of this size; name another disk" in str(error)


def test_of_two_that_make_one_folder_the_slower_changes_nothing(tmp_path):
    """Both have the same process id, as in two containers with one disk."""
    out = tmp_path / "out"

    def make(text: str, meanwhile: Callable[[], None]) -> None:
        with new_folder(out, lambda: None) as folder:
            folder.mkdir()
            meanwhile()
            (folder / "file").write_text(text)

    with pytest.raises(InputError, match="Directory not empty; expected a new folder"):
        make("slower", lambda: make("faster", lambda: None))
    assert (out / "file").read_text() == "faster"
    assert [*tmp_path.iterdir()] == [out]


def test_room_that_a_folder_took_in_vain_counts_as_free(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")

    def fill() -> None:
        with new_folder(disk / "out", lambda: 3_000_000) as folder:
            folder.mkdir()
            (folder / "file").write_bytes(bytes(3_000_000))

    try:
        with pytest.raises(Irv2Error, match=r"3\.0 MB to write, 1\.0 MB free"):
            fill()
        assert [*disk.iterdir()] == []
    finally:
        subprocess.run(["umount", disk], check=True)
