"""`irv2-classify`: what it finds in folders, and what it keeps when it can't go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_server import Scripted, served
from unreadable import file_in_a_closed_folder

from irv2.commands.classify import image_files, report, table
from irv2.errors import InputError
from irv2.results import Result, Score


class FailsOn(Scripted):
    """Ends the call that holds an image of these bytes."""

    def Classify(self, request, context):  # noqa: N802 (gRPC's name)
        if request.images[0].encoded == b"the last one":
            context.abort(13, "internal error")
        return super().Classify(request, context)


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"any")
    (tmp_path / "3.jpg").write_bytes(b"the last one")
    return tmp_path


@pytest.mark.parametrize("options", [["--json"], []])
def test_what_was_answered_before_a_failure_is_printed(folder, options):
    with served(FailsOn()) as address:
        command = [sys.executable, "-m", "irv2", "classify", str(folder), "--server", address]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    if options:
        found = [entry["file"] for entry in json.loads(done.stdout)["results"]]
    else:
        found = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert found == [str(folder / f"{number}.jpg") for number in range(3)]


@pytest.mark.parametrize(
    ("options", "got"),
    [([], "neither --server nor"), (["--server=h:1", "--bundle=b"], "both --server and")],
)
def test_server_and_bundle_exclude_each_other_and_one_is_needed(folder, options, got):
    command = [sys.executable, "-m", "irv2", "classify", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: classify: {got} --bundle given; expected one")


def test_a_link_to_a_file_that_is_gone_is_an_image_that_cannot_be_read(folder):
    (folder / "below").mkdir()
    gone = folder / "below" / "gone.png"
    gone.symlink_to("nowhere.png")
    assert gone in list(image_files(folder))


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "not for you", str(path))

    monkeypatch.setattr("os.scandir", refuse)  # tests may run as root, who reads everything
    with pytest.raises(InputError, match=f"^{folder}: not for you"):
        list(image_files(folder))


def test_files_that_may_be_listed_but_not_looked_at_are_reported_one_by_one():
    with file_in_a_closed_folder() as file:
        assert list(image_files(file.parent)) == [file]


def test_a_name_with_a_line_break_stays_in_its_row():
    lines = table([Path("a\nb.jpg")], [Result((Score(0, "two\nlines", 1.0),))]).splitlines()
    assert len(lines) == 3
    assert lines[2].split() == [r"a\nb.jpg", r"two\nlines", "100.00", "%"]


def test_a_picture_that_was_not_turned_says_so():
    files, results = [Path("a.jpg")], [Result((Score(0, "cat", 1.0),), orientation=6)]
    assert "cat 100.00 %, as stored (EXIF orientation 6 is not applied)" in table(files, results)
    assert report(files, results)["results"][0]["orientation"] == 6
