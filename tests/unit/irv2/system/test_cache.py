"""Entries of the user's cache are used, made again, or done without."""

from pathlib import Path

import pytest

from irv2.system.cache import cache_folder, cached


@pytest.fixture
def made() -> list[str]:
    """What `make` was asked for, call by call."""
    return []


def entry(path: Path, made: list[str]) -> str:
    """A text of one word; `old` is out of date, and a number is no entry."""

    def load(path: Path) -> str | None:
        text = path.read_text()
        if text.isdecimal():
            raise ValueError("a number")
        return None if text == "old" else text

    def make() -> str:
        made.append("new")
        return "new"

    return cached(path, "the word", load=load, make=make, dump=str.encode)


def test_an_entry_is_made_once(tmp_path, made):
    path = tmp_path / "folder" / "word.txt"
    assert [entry(path, made), entry(path, made)] == ["new", "new"]
    assert (made, path.read_text()) == (["new"], "new")


def test_an_entry_of_before_is_taken(tmp_path, made):
    (tmp_path / "word.txt").write_text("kept")
    assert entry(tmp_path / "word.txt", made) == "kept"
    assert not made


@pytest.mark.parametrize(("content", "lines"), [("old", 0), ("7", 1)])
def test_an_entry_out_of_date_is_made_again_and_a_damaged_one_named(
    tmp_path, made, caplog, content, lines
):
    path = tmp_path / "word.txt"
    path.write_text(content)
    assert entry(path, made) == path.read_text() == "new"
    assert len(caplog.messages) == lines
    assert all("unreadable the word" in line for line in caplog.messages)


def test_without_a_cache_it_is_made_every_time(tmp_path, made, caplog):
    (tmp_path / "folder").write_text("a file where the folder would be")
    path = tmp_path / "folder" / "word.txt"
    assert [entry(path, made), entry(path, made)] == ["new", "new"]
    assert made == ["new", "new"]
    assert all("the word can't be kept" in line for line in caplog.messages)
    assert len(caplog.messages) == 2


def test_the_cache_lies_where_the_user_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("index") == tmp_path / "irv2" / "index"
