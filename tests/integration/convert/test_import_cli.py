"""`irv2 import`: what it prints, and how it fails."""

import pytest
import torch
from click.testing import CliRunner
from tiny_checkpoint import make_checkpoint, write_images

from irv2.cli.main import main


def irv2_import(*arguments: object):
    return CliRunner().invoke(main, ["import", *map(str, arguments)])


def error_line(*arguments: object) -> str:
    done = irv2_import(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.rstrip()


def test_both_networks_are_shown_without_a_file():
    done = irv2_import("--show-networks")
    assert done.exit_code == 0
    totals = done.stdout.splitlines()[-1]
    assert "31,574,440" in totals
    assert "55,843,464" in totals


def test_a_file_that_is_no_weights_is_one_line_and_leaves_nothing(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    line = error_line(tmp_path / "resnet.pth", "-o", tmp_path / "a.pt")
    assert "resnet.pth: tensors of another network (layer1.0.conv1.weight, ...)" in line
    assert not (tmp_path / "a.pt").exists()


def test_a_checkpoint_of_ours_needs_no_import(tmp_path):
    make_checkpoint(write_images(tmp_path / "data")).save(tmp_path / "best.pt")
    line = error_line(tmp_path / "best.pt", "-o", tmp_path / "a.pt")
    assert line.endswith("best.pt: is a checkpoint of irv2 already; use it as it is")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["-o", "gone/a.pt"],
            "error: --out: no folder gone; expected an existing one; mkdir -p gone",
        ),
        ([], "--out"),
        (["-o", "a.pt", "--classes", "gone.txt"], "gone.txt"),
        (["-o", "a.pt"], "error: weights.pth: no such file; expected weights as .t7, .pth,"),
    ],
)
def test_what_people_get_wrong_is_one_line(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in error_line("weights.pth", *options)
