"""`irv2 features`: the classifier's inputs of real files, by name."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_checkpoint import make_checkpoint, write_images

from irv2.checkpoint import Checkpoint, load_model
from irv2.cli.main import main
from irv2.commands.features import write_features
from irv2.data.dataset import open_split
from irv2.evaluate import classify_folder
from irv2.runners.torch import TorchRunner


@pytest.fixture
def site(tmp_path):
    """A checkpoint beside data/val with 48 images."""
    write_images(tmp_path / "data")
    make_checkpoint(tmp_path / "data").save(tmp_path / "best.pt")
    return tmp_path


def features(*arguments):
    return CliRunner().invoke(main, ["features", *map(str, arguments)])


def test_the_classifier_makes_the_logits_out_of_them(site):
    out = site / "features.npz"
    done = features(
        site / "data", "--model", site / "best.pt", "-o", out, "--json", "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    found = np.load(out)
    model = load_model(site / "best.pt")
    folder = open_split(site / "data", "val")
    assert found["files"].tolist() == [str(folder.path(i)) for i in range(48)]
    assert found["features"].dtype == np.float32
    assert json.loads(done.stdout) == {
        "out": str(out),
        "n": 48,
        "num_features": model.classifier.in_features,
    }
    checkpoint = Checkpoint.load(site / "best.pt")
    [ledger] = classify_folder([TorchRunner(checkpoint)], folder, checkpoint.preprocess)
    with torch.inference_mode():
        logits = model.classifier(torch.from_numpy(found["features"])).numpy()
    np.testing.assert_array_equal(logits[:32], ledger.logits[:32])  # the same batch of 32


def test_a_file_named_twice_comes_once_in_the_order_given(site):
    first, second = (site / "data/val" / name for name in ("red/3.png", "blue/0.png"))
    out = site / "f.npz"
    shape = write_features([first, second], site / "best.pt", out, "cpu", "error")
    assert (
        features(
            first, second, first, "--model", site / "best.pt", "-o", out, "--device", "cpu"
        ).stdout
        == f"{out}: 2 images, {shape[1]} features each\n"
    )
    assert np.load(out)["files"].tolist() == [str(first), str(second)]


def test_a_bad_image_is_one_line_and_leaves_no_file(site):
    bad = site / "data/val/red/bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = features(site / "data", "--model", site / "best.pt", "-o", site / "f.npz")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {bad}: ")
    assert not (site / "f.npz").exists()
    arguments = ("--model", site / "best.pt", "-o", site / "f.npz", "--bad-images", "skip")
    assert features(site / "data", *arguments).exit_code == 0
    assert len(np.load(site / "f.npz")["files"]) == 48


@pytest.mark.parametrize(("num", "named"), [(1, "0.png"), (3, "0.png and 2 more")])
def test_where_no_image_is_left_they_are_named(site, num, named):
    bad = [site / f"{i}.png" for i in range(num)]
    for path in bad:
        path.touch()
    arguments = ("--model", site / "best.pt", "-o", site / "f.npz", "--bad-images", "skip")
    done = features(*bad, *arguments)
    line = f"error: {site / named}: no image could be read; expected at least one"
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (2, line)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ([], "--model"),
        (["--model", "gone.pt"], "error: gone.pt: no such file; expected a checkpoint"),
        (["--model", "."], "error: .: is a folder; expected a checkpoint"),
        (["--model", "gone.pt", "-o", "/gone/f.npz"], "error: /gone/f.npz: no such folder"),
    ],
)
def test_what_people_get_wrong_is_one_line(site, more, line):
    done = features(site / "data/val/red/0.png", "-o", site / "f.npz", *more)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert line in done.stderr
