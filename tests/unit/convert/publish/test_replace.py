"""Bundles appear whole, whoever is killed and whoever else publishes there."""

import errno
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from process_output import read_line

from irv2.convert.publish.replace import folder_beside, replace_folder, require_replaceable
from irv2.errors import BundleError

# In a container every one of these may have the same process id.
HOLD = """
import sys
from pathlib import Path
from irv2.convert.publish.replace import folder_beside
with folder_beside(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


def left_overs(place: Path) -> list[Path]:
    return list(place.parent.glob(f".{place.name}.*"))


def publish(place: Path, text: str) -> None:
    with folder_beside(place) as folder:
        (folder / "bundle.json").write_text(text)
        replace_folder(folder, place)


def test_what_a_killed_process_left_is_swept_and_what_is_in_use_is_not(tmp_path):
    place = tmp_path / "a[1].bundle"
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        folder = Path(read_line(process.stdout).strip())
        publish(place, "new")
        assert (folder / "half").exists()
        process.kill()
    assert (folder / "half").exists()
    publish(place, "newer")
    assert (place / "bundle.json").read_text() == "newer"
    assert left_overs(place) == []


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    """What a crash between the two renames leaves of `tmp_path`/b."""
    aside = tmp_path / ".b.12345678.old"
    publish(aside / "b", "old")
    (aside / "lock").touch()
    return aside


def test_an_old_bundle_that_a_crash_left_aside_comes_back_where_there_is_no_new_one(aside, caplog):
    place = aside.parent / "b"
    with folder_beside(place):  # an export, whose gate fails
        pass
    assert (place / "bundle.json").read_text() == "old"
    assert f"{place}: was left aside by a crash and is back" in caplog.text
    assert left_overs(place) == []


def test_an_old_bundle_that_a_crash_left_aside_is_swept_where_there_is_a_new_one(aside):
    place = aside.parent / "b"
    place.mkdir()
    (place / "bundle.json").write_text("new")
    with folder_beside(place):
        pass
    assert (place / "bundle.json").read_text() == "new"
    assert left_overs(place) == []


def test_an_old_bundle_of_another_name_that_begins_so_stays_aside(tmp_path):
    aside = tmp_path / ".a.b.12345678.old"
    publish(aside / "a.b", "old")
    (aside / "lock").touch()
    publish(tmp_path / "a", "new")
    publish(tmp_path / "a", "newer")
    assert (aside / "a.b" / "bundle.json").read_text() == "old"


def test_an_old_bundle_that_is_just_being_replaced_stays_aside(aside):
    place = aside.parent / "b"
    with (aside / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with folder_beside(place):
            assert not place.exists()
    assert (aside / "b" / "bundle.json").read_text() == "old"


def test_a_folder_has_the_users_usual_permissions(tmp_path):
    publish(tmp_path / "b", "")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_replacement_that_fails_is_one_line_and_leaves_the_old_bundle(tmp_path):
    publish(tmp_path / "b", "old")
    with pytest.raises(BundleError, match="another process changed it") as caught:
        replace_folder(tmp_path / "gone", tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "b" / "bundle.json").read_text() == "old"
    assert left_overs(tmp_path / "b") == []


def test_a_replacement_that_no_other_process_hinders_is_not_blamed_on_one(tmp_path):
    publish(tmp_path / "b", "old")
    # A folder can't move into itself.
    with pytest.raises(
        BundleError,
        match=rf"b: can't be replaced \({os.strerror(errno.EINVAL)}\); name another place$",
    ):
        replace_folder(tmp_path, tmp_path / "b")
    assert (tmp_path / "b" / "bundle.json").read_text() == "old"


def test_a_place_that_can_not_be_renamed_is_refused_beforehand(tmp_path, monkeypatch):
    place = tmp_path / "b"
    require_replaceable(place)
    publish(place, "old")
    require_replaceable(place)
    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(os, "access", lambda path, _: path == place)
        with pytest.raises(BundleError, match="can't be replaced: it or the folder"):
            require_replaceable(place)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == place)
    with pytest.raises(BundleError, match="is a mount point"):
        require_replaceable(place)


def test_two_exports_to_one_place_each_publish_or_fail_with_one_line(tmp_path):
    place = tmp_path / "b"

    def try_often(text: str) -> int:
        published = 0
        for _ in range(50):
            with suppress(BundleError):
                publish(place, text)
                published += 1
        return published

    with ThreadPoolExecutor(2) as pool:
        assert min(pool.map(try_often, ("one", "other"))) > 0
    assert (place / "bundle.json").read_text() in ("one", "other")
    assert left_overs(place) == []


def complain(folder: Path) -> NoReturn:
    model = folder / "model.onnx"
    raise BundleError(model, f"can't be read ({model})", way_out=f"irv2 verify {folder}")


def read(folder: Path) -> None:
    (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("work", [complain, read])
def test_an_error_names_the_place_and_not_the_hidden_folder(tmp_path, work):
    place = tmp_path / "a.bundle"
    with pytest.raises((BundleError, OSError)) as caught, folder_beside(place) as folder:
        work(folder)
    assert str(place / "model.onnx") in str(caught.value)
    assert ".tmp" not in str(caught.value)


def test_a_bundle_that_others_publish_while_the_old_one_is_put_back_stays(tmp_path, monkeypatch):
    place = tmp_path / "b"
    publish(place, "old")
    rename = Path.rename

    def overtaken(path: Path, target: Path) -> Path:
        if target == place and path.parent.name.endswith(".tmp"):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if target == place:
            place.mkdir()
            (place / "bundle.json").write_text("other")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(BundleError, match="another process changed it"):
        publish(place, "new")
    assert (place / "bundle.json").read_text() == "other"
    assert left_overs(place) == []
