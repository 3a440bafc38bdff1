"""`irv2 import`: what it prints, and how it fails."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_checkpoint import make_checkpoint, write_images

from irv2.checkpoint import Checkpoint
from irv2.cli.main import main
from irv2.model.build import build
from irv2.model.paper import Normalized
from irv2.network_config import ModelConfig

CONFIG = ModelConfig(blocks=(1, 1, 1), num_classes=3)
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


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


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A network of ours: its state_dict on file, beside what classes it knows."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    network = build(CONFIG).eval()
    torch.save(network.state_dict(), folder / "own.pth")
    (folder / "names").write_text("ant\nbee\ncat\n")
    images = np.random.default_rng(0).integers(0, 256, (4, 75, 75, 3), np.uint8)
    with torch.inference_mode():
        logits = Normalized(network, MEAN, STD)(torch.from_numpy(images)).numpy()
    np.savez(folder / "own.npz", inputs=images, logits=logits)
    return folder


IMAGES = ["--crop", 75, "--mean", *MEAN, "--std", *STD, "--resampling", "pillow-bicubic"]


def test_what_options_say_is_printed_and_recorded_and_the_answers_are_compared(own, tmp_path):
    arguments = [own / "own.pth", "-o", tmp_path / "a.pt", "--classes", own / "names", *IMAGES]
    done = irv2_import(*arguments, "--compare", own / "own.npz", "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    sources = {name: f"--{name}" for name in ("crop", "resampling", "mean", "std")}
    sources["resize"] = "the published network's"
    assert summary["preprocess_from"] == sources
    assert summary["agreement"]["same_best"] == 4
    checkpoint = Checkpoint.load(tmp_path / "a.pt")
    preprocess = checkpoint.preprocess
    assert (preprocess.mean, preprocess.std, preprocess.crop) == (MEAN, STD, 75)
    imported = checkpoint.recipe["imported"]
    assert imported["preprocess_from"] == sources
    assert imported["classes_from"] == "named by names"
    assert imported["agreement"] == summary["agreement"]


def test_answers_that_differ_are_exit_3_and_leave_nothing(own, tmp_path):
    arguments = [own / "own.pth", "-o", tmp_path / "a.pt", "--classes", own / "names"]
    done = irv2_import(*arguments, "--crop", 75, "--compare", own / "own.npz")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "of the typical margin; expected at most 0.01 of it; check size" in done.stderr
    assert not list(tmp_path.iterdir())


def test_weights_without_a_classifier_say_so_and_are_for_a_fine_tuning_alone(own, tmp_path):
    state = torch.load(own / "own.pth", weights_only=True)
    state = {name: tensor for name, tensor in state.items() if "classifier" not in name}
    torch.save(state, tmp_path / "headless.pth")
    done = irv2_import(tmp_path / "headless.pth", "-o", tmp_path / "a.pt")
    assert done.exit_code == 0, done.stderr
    assert (
        "  classes  none: a network without its classifier, to begin a fine-tuning" in done.stdout
    )
    checkpoint = Checkpoint.load(tmp_path / "a.pt")
    assert (checkpoint.classes, checkpoint.model.num_classes) == ([], 0)
    data = write_images(tmp_path / "data")
    for program in ("eval", "export"):
        done = CliRunner().invoke(main, [program, str(tmp_path / "a.pt"), "--data", str(data)])
        assert done.exit_code == 2
        assert "has no classifier; expected one that names classes; train one:" in done.stderr


def test_a_network_of_one_output_is_refused(own, tmp_path):
    state = torch.load(own / "own.pth", weights_only=True)
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][:1].clone()
    torch.save(state, tmp_path / "one.pth")
    line = error_line(tmp_path / "one.pth", "-o", tmp_path / "a.pt")
    assert "its classifier has one output, whose softmax is always 1" in line
