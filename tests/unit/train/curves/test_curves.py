"""Curves of our runs and of the original's logs, and the lines about files that are neither."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image

from irv2.cli.main import main
from irv2.train.curves.curves import legend_label, read_curve

ROW = (
    json.dumps(
        {
            "epoch": 1,
            "train_top1_error": 9,
            "train_top5_error": 1,
            "val_top1_error": 3.5,
            "val_top5_error": 2,
        }
    )
    + "\n"
)


@pytest.fixture
def run(tmp_path):
    """A run's folder with two epochs."""
    rows = [
        {
            "epoch": n,
            "train_top1_error": 50 / n,
            "train_top5_error": 20 / n,
            "val_top1_error": 40 / n,
            "val_top5_error": 10 / n,
        }
        for n in (1, 2)
    ]
    (tmp_path / "mine").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "mine/metrics.jsonl").write_text(text)
    return tmp_path / "mine"


def test_runs_are_named_after_their_folders_and_logs_after_their_files(run, log):
    assert read_curve(run).name == read_curve(run / "metrics.jsonl").name == "mine"
    assert read_curve(log).name == "setting1"
    assert read_curve(run).rows[1]["val_top1_error"] == 20


def plot(*arguments):
    return CliRunner().invoke(main, ["plot", *map(str, arguments)])


def colours(path):
    with Image.open(path) as picture:
        pixels = picture.convert("RGB").getcolors(2**24)
    return {colour for _, colour in pixels}


RED, BLUE, FIRST, SECOND = (255, 0, 0), (0, 0, 255), (31, 119, 180), (255, 127, 14)
PURPLE = (128, 0, 128)


def test_one_run_is_red_and_blue_and_several_have_a_colour_each(run, log, tmp_path):
    assert plot(run, "-o", tmp_path / "one.png").exit_code == 0
    assert {RED, BLUE} <= colours(tmp_path / "one.png")
    done = plot(run, log, "-o", tmp_path / "two.png", "--json")
    assert json.loads(done.stdout)["runs"] == ["mine", "setting1"]
    found = colours(tmp_path / "two.png")
    assert {FIRST, SECOND} <= found
    assert not {RED, BLUE} & found


def test_a_run_that_averages_its_weights_shows_them_in_green(run, tmp_path):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    averaged = [{**row, "ema_val_top1_error": 30, "ema_val_top5_error": 5} for row in rows]
    for name, content in (("raw", rows), ("cut", [averaged[0], rows[1]]), ("averaged", averaged)):
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        assert plot(run, "-o", tmp_path / f"{name}.png").exit_code == 0
        assert ((0, 128, 0) in colours(tmp_path / f"{name}.png")) == (name == "averaged")


def test_both_phases_of_a_fine_tuning_follow_each_other_with_a_line_between(run, tmp_path):
    plain, both = tmp_path / "plain.png", tmp_path / "both.png"
    assert plot(run, "-o", plain).exit_code == 0
    (run / "head").mkdir()
    shutil.copy(run / "metrics.jsonl", run / "head")
    curve = read_curve(run)
    assert [row["epoch"] for row in curve.rows] == [1, 2, 3, 4]
    assert [row["val_top1_error"] for row in curve.rows] == [40, 20, 40, 20]
    assert curve.head_epochs == 2
    assert read_curve(run / "head").head_epochs == 0
    assert plot(run, "-o", both).exit_code == 0
    assert PURPLE in colours(both) - colours(plain)
    assert plot(run, run / "head", "-o", tmp_path / "two.png").exit_code == 0


def test_the_published_curve_is_added_when_asked_for(log, tmp_path):
    for name, more in (("without", ()), ("with", ("--published",))):
        assert plot(log, "-o", tmp_path / f"{name}.png", *more).exit_code == 0
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_two_folders_of_one_name_are_told_apart_by_their_paths(run, tmp_path):
    other = tmp_path / "again" / "mine"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    done = plot(run, other, "-o", tmp_path / "two.png", "--json")
    assert json.loads(done.stdout)["runs"] == [str(run), str(other)]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("notes.txt", "no log at all\n", "no finished epoch in it"),
        ("binary", b"\x89PNG\r\n\x1a\n\xff\xfe", "no finished epoch in it"),
        ("metrics.jsonl", "", "no finished epoch in it"),
        ("metrics.jsonl", "{]\n", "line 1 is not JSON"),
        ("metrics.jsonl", '{"epoch": 1}\n', "line 1 lacks an epoch's errors"),
        ("metrics.jsonl", b'{"epoch": "\xff"}\n', "line 1 is not JSON"),
        ("metrics.jsonl", ROW.replace("3.5", '"3.5"'), "line 1: val_top1_error is '3.5'"),
        ("metrics.jsonl", ROW.replace("3.5", "null"), "line 1: val_top1_error is None"),
        ("metrics.jsonl", ROW.replace("3.5", 400 * "9"), "line 1: val_top1_error is 9999"),
        ("x.log", " | Epoch: [1][1/2] cut\n", "line 1 is damaged"),
    ],
)
def test_a_file_that_is_no_curve_is_one_line(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = plot(tmp_path / name, "-o", tmp_path / "out.png")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert line in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_a_folder_without_metrics_is_one_line(tmp_path):
    done = plot(tmp_path, "-o", tmp_path / "out.png")
    assert done.exit_code == 2
    assert f"error: {tmp_path}: no metrics.jsonl in it" in done.stderr


def test_a_picture_may_have_any_name(run, tmp_path):
    picture = tmp_path / os.fsdecode(b"\xff.png")
    command = [sys.executable, "-m", "irv2", "plot", run, "-o", picture]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as most terminals are
    done = subprocess.run(command, env=strict, capture_output=True)
    assert done.stdout == os.fsencode(picture) + b"\n", done.stderr
    assert picture.is_file()


@pytest.mark.parametrize(("name", "shown"), [("_under", " _under"), ("x$_{$", r"x\$_{\$")])
def test_any_name_of_a_run_is_a_line_of_the_legend_as_it_stands(run, tmp_path, name, shown):
    rows = read_curve(run).rows
    assert legend_label(name, rows[-1], "val").startswith(f"{shown}: ")
    odd = run.rename(run.with_name(name))
    other = tmp_path / "other"
    shutil.copytree(odd, other)
    picture = tmp_path / "curves.png"
    done = CliRunner().invoke(main, ["plot", str(odd), str(other), "-o", str(picture)])
    assert done.exit_code == 0, done.output
    assert picture.is_file()
