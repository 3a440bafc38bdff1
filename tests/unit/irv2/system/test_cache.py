"""Entries of the user's cache are used, made again, or done without."""

import errno
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from irv2.system.cache import cache_folder, cached


@pytest.fixture
def made() -> list[str]:
    """What `make` was asked for, call by call."""
    return []


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of words in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("irv2.system.cache._is_told", False)  # as in a new process
    return tmp_path / "irv2" / "word"


def entry(made: list[str], key: str = "key", name: str | None = None) -> str:
    """A word; a number is no word."""

    def load(content: bytes) -> str:
        if content.isdigit():
            raise ValueError("a number")
        return content.decode()

    def make() -> str:
        made.append(key)
        return f"made of {key}" if key != "7" else key

    return cached("word", key, load=load, make=make, dump=str.encode, name=name)


def test_an_entry_is_made_once(made, cache):
    assert [entry(made), entry(made)] == ["made of key"] * 2
    assert made == ["key"]
    assert len(list(cache.iterdir())) == 1


def test_an_entry_copied_to_the_name_of_another_is_refused(made, cache, caplog):
    entry(made, "theirs")
    [theirs] = cache.iterdir()
    entry(made, "mine")
    [mine] = set(cache.iterdir()) - {theirs}
    shutil.copyfile(theirs, mine)
    with caplog.at_level(logging.INFO):
        assert [entry(made, "mine"), entry(made, "mine")] == ["made of mine"] * 2
    assert made == ["theirs", "mine", "mine"]
    [line] = caplog.messages
    assert line == f"{mine}: the word of something else, made again"


def test_entries_of_one_name_replace_each_other(made, cache):
    for key in ("old", "new", "new"):
        assert entry(made, key, "place") == f"made of {key}"
    assert made == ["old", "new"]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_entry_is_named_and_made_again(made, cache, caplog, damage):
    entry(made)
    [path] = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-3],
            "flipped": whole.replace(b"made of key", b"made of kez"),
            "foreign": b'{"state": 1}',
            "empty": b"",
        }[damage]
    )
    assert entry(made) == "made of key"
    [line] = caplog.messages
    assert f"{path}: unreadable word, made again" in line
    assert path.read_bytes() == whole


def test_an_entry_that_is_no_word_is_made_again(made, caplog):
    assert [entry(made, "7"), entry(made, "7")] == ["7", "7"]
    assert made == ["7", "7"]
    assert "a number" in caplog.text


def test_without_a_cache_it_is_made_every_time(made, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    assert [entry(made), entry(made)] == ["made of key"] * 2
    assert made == ["key", "key"]
    cache.with_name("number").touch()
    cached("number", 7, load=int, make=lambda: 7, dump=lambda number: b"%d" % number)
    [notice] = caplog.messages
    reason = f"{cache}: can't be written ({os.strerror(errno.EEXIST)})"
    assert notice.startswith(f"cache: {reason}; indexes, hashes, ranges, compiled models and ")
    assert "every start takes the time again" in notice


def test_without_a_place_for_temporary_files_it_is_made_every_time(made, monkeypatch, caplog):
    """As in a container whose file system is read-only."""

    def no_folder() -> None:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("irv2.system.cache._is_allowed", lambda folder: False)
    monkeypatch.setattr("irv2.system.cache._temporary_folder", no_folder)
    assert [entry(made), entry(made)] == ["made of key"] * 2
    assert made == ["key", "key"]
    [notice] = caplog.messages
    assert "no permission" in notice


def test_the_cache_lies_where_the_user_says(tmp_path):
    assert cache_folder("index") == tmp_path / "irv2" / "index"


AS_ANOTHER_USER = """
import os, sys
from irv2.system.cache import cache_folder, cached

os.setgroups([])
os.setuid(4242)  # in no list of users
for _ in range(2):
    print(cached("word", "key", load=bytes.decode, make=lambda: "made", dump=str.encode))
print(cache_folder("word"))
"""


def as_another_user(**environment: str) -> tuple[list[str], list[str]]:
    """Ask for a word twice, and for its folder; return the lines of stdout and of stderr."""
    kept = {name: os.environ[name] for name in os.environ if name not in ("XDG_CACHE_HOME", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")


@needs_root
def test_without_a_home_the_cache_is_temporary_with_one_notice():
    (first, second, folder), stderr = as_another_user()
    assert [first, second] == ["made", "made"]
    [notice] = stderr
    assert "home" in notice
    assert "every start takes the time again" in notice
    assert not Path(folder).parent.exists()


@needs_root
@pytest.mark.parametrize("locked", ["irv2", "irv2/word"])
def test_a_cache_that_another_user_locked_is_replaced_with_one_notice(made, tmp_path, locked):
    entry(made)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    tmp_path.chmod(0o755)
    (tmp_path / locked).chmod(0o700)
    (first, second, _), stderr = as_another_user(XDG_CACHE_HOME=str(tmp_path))
    assert [first, second] == ["made", "made"]
    [notice] = stderr
    assert "no permission" in notice


def test_an_entry_that_cannot_be_read_is_left_with_a_notice(made, cache, caplog):
    entry(made)
    [path] = cache.iterdir()
    path.unlink()
    path.symlink_to("/proc/self/mem")  # its first page can't be read, by root either
    assert entry(made) == "made of key"
    [notice] = caplog.messages
    assert f"cache: {path}: can't be read (" in notice
    assert path.is_symlink()


def test_the_oldest_entries_beyond_the_limit_make_room(cache):
    for number in range(4):
        cached(
            "word", number, load=bytes.decode, make=lambda: "x" * 1000, dump=str.encode,
            most_bytes=2500,
        )  # fmt: skip
        [newest] = [path for path in cache.iterdir() if path.stat().st_mtime > 2**30]
        os.utime(newest, (number, number))
    assert sorted(path.stat().st_mtime for path in cache.iterdir()) == [2, 3]
