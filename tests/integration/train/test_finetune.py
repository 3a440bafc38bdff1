"""irv2 finetune: both phases, killed, out of time, given nonsense.

Most commands run in this process, which has imported torch already; a run that is killed, and the
one that it must equal, are processes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kill_and_resume import ENVIRONMENT
from PIL import Image
from same_run import assert_same_run, rows

from irv2.checkpoint import Checkpoint
from irv2.cli.main import main
from irv2.train.curves.curves import read_curve

TINY = ("--width", "0.03", "--blocks", "1", "1", "1", "--image-size", "75")
OPTIONS = ("--batch-size", "8", "--bn-group", "4", "--device", "cpu", "--workers", "0")
SLIM = "inception_resnet_v2_slim"
Finetune = Callable[..., str]


def write_images(folder: Path, num: int, *labels: str) -> None:
    """Classes that differ in brightness."""
    rng = np.random.default_rng(num)
    for i, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for k in range(num):
            pixels = rng.integers(100 * i, 100 * i + 56, (80, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{k}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training images of two classes, and 4 of validation."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", 8, "dark", "light")
    write_images(root / "val", 2, "dark", "light")
    return root


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of TF-slim's network that has hardly been trained."""
    out = tmp_path_factory.mktemp("begun") / "run"
    irv2("train", "--setting", "2", "--arch", SLIM, *TINY, *OPTIONS, "--epochs", "1",
         "--data", str(data), "--out", str(out))  # fmt: skip
    return out / "best.pt"


def irv2(*arguments: str, status: int = 0) -> tuple[str, str]:
    """Its stdout and stderr."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == status, done.output
    return done.stdout, done.stderr


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """The program as a process of its own, to be killed."""
    command = [sys.executable, "-m", "irv2", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)


@pytest.fixture
def finetune(begun: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Finetune:
    """Fine-tune on `data`, or on other images, in `tmp_path`/run; returns what is logged."""
    caplog.set_level("INFO")

    def run(*more: str, status: int = 0) -> str:
        caplog.clear()
        out = ("--data", str(data), "--out", str(tmp_path / "run"))
        _, stderr = irv2("finetune", str(begun), *out, *OPTIONS, *more, status=status)
        return caplog.text + stderr

    return run


def changed(one: Path, other: Path) -> set[str]:
    """Parts of the network in which two checkpoints differ, statistics included."""
    mine, theirs = Checkpoint.load(one).state_dict, Checkpoint.load(other).state_dict
    return {n.partition(".")[0] for n in mine if not torch.equal(mine[n], theirs[n])}


def recipe_of(run: Path) -> dict[str, object]:
    recipe: dict[str, object] = json.loads((run / "config.json").read_text())["recipe"]
    return recipe


def test_both_phases_train_what_they_say_and_leave_runs_of_their_own(begun, finetune, tmp_path):
    out = tmp_path / "run"
    more = ("--train", "blocks_c", "--feature-crops", "2", "--head-epochs", "3", "--epochs", "2")
    said = finetune(*more)
    assert "phase 1 of 2" in said
    assert "phase 2 of 2" in said
    assert changed(begun, out / "head" / "best.pt") == {"classifier"}
    assert changed(out / "head" / "best.pt", out / "best.pt") == {"blocks_c", "head", "classifier"}
    assert [len(rows(run)) for run in (out / "head", out)] == [3, 2]
    assert [row["epoch"] for row in read_curve(out).rows] == [1, 2, 3, 4, 5]
    assert (out / "curves.png").is_file()
    recipe = recipe_of(out)
    assert (recipe["setting"], recipe["trained"]) == ("finetune", "blocks_c")
    assert recipe["arch"] == SLIM
    assert "already finished" in finetune(*more)


def test_every_augmentation_is_for_both_phases_except_that_a_head_s_images_are_not_mixed(
    finetune, tmp_path
):
    out = tmp_path / "run"
    finetune("--min-area", "0.5", "--auto-augment", "trivial", "--erase", "0.25", "--mixup", "0.2",
             "--cutmix", "1", "--head-epochs", "1", "--epochs", "1")  # fmt: skip
    for run, mixed in ((out / "head", [0, 0]), (out, [0.2, 1])):
        recipe = recipe_of(run)
        named = [recipe[name] for name in ("min_area", "auto_augment", "erase")]
        assert named == [0.5, "trivial", 0.25]
        assert [recipe["mixup"], recipe["cutmix"]] == mixed


def test_a_head_alone_has_the_errors_that_eval_finds(data, finetune, tmp_path):
    finetune("--train", "head", "--epochs", "2")
    best = tmp_path / "run" / "best.pt"
    found, _ = irv2("eval", str(best), "--data", str(data), "--json")
    assert json.loads(found)["top1_error"] == Checkpoint.load(best).metrics["val_top1_error"]


def test_a_run_killed_while_it_computes_features_goes_on_where_it_was(begun, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["finetune", str(begun), "--data", str(data), *OPTIONS, "--train", "head",
               "--epochs", "2", "--feature-crops", "12", "--out"]  # fmt: skip
    irv2(*command, str(whole))
    process = start(*command, str(killed))
    while not (files := list(killed.rglob("train-3-*.npz"))):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = files[0].stat().st_mtime_ns
    assert not (killed / "metrics.jsonl").exists()
    irv2(*command, str(killed))
    assert files[0].stat().st_mtime_ns == written
    assert_same_run(killed, whole)


@pytest.mark.slow
def test_a_head_killed_between_saves_trains_the_epochs_since_again(begun, data, tmp_path, caplog):
    """Its epochs are shorter than writing a checkpoint, so not every one is saved."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["finetune", str(begun), "--data", str(data), *OPTIONS, "--train", "head",
               "--epochs", "100", "--feature-crops", "1", "--out"]  # fmt: skip
    irv2(*command, str(whole))
    process = start(*command, str(killed))
    try:
        while num_unsaved(killed) < 2:
            assert process.poll() is None
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.02)
            os.kill(process.pid, signal.SIGSTOP)
    finally:
        process.kill()
        process.wait()
    saved = Checkpoint.load(killed / "last.pt").step
    best = Checkpoint.load(killed / "best.pt").metrics["val_top1_error"]
    assert best <= min(r["val_top1_error"] for r in rows(killed) if r["step"] <= saved)
    caplog.set_level("INFO")
    irv2(*command, str(killed))
    assert "are trained again" in caplog.text
    assert [row["epoch"] for row in rows(killed)] == list(range(1, 101))
    assert_same_run(killed, whole)


def num_unsaved(run: Path) -> int:
    """How many of its finished epochs ended after the last save."""
    if not (run / "metrics.jsonl").exists():
        return 0
    saved = Checkpoint.load(run / "last.pt").step
    return sum(row["step"] > saved for row in rows(run))


def test_patience_ends_a_run_that_gets_no_better(finetune, tmp_path):
    more = ("--head-epochs", "0", "--epochs", "50", "--learning-rate", "1e-9", "--patience", "2")
    finetune(*more)
    assert len(rows(tmp_path / "run")) == 3
    assert "already finished" in finetune(*more)


def test_a_time_budget_shorter_than_an_epoch_leaves_the_best_there_is(finetune, tmp_path):
    more = ("--head-epochs", "0", "--epochs", "50", "--time-budget", "0.0001")
    assert "time is up after 1 of 2 steps" in finetune(*more)
    [row] = rows(tmp_path / "run")
    assert row["step"] == 1
    assert (tmp_path / "run" / "best.pt").is_file()
    assert "already finished" in finetune(*more)


def test_a_time_budget_shorter_than_the_features_says_that_there_are_no_weights(finetune, tmp_path):
    more = ("--train", "head", "--epochs", "1", "--feature-crops", "2")
    said = finetune(*more, "--time-budget", "0.00001", status=2)
    assert "error: --time-budget: 1e-05 minutes are up" in said
    assert "there are no weights yet" in said
    assert not (tmp_path / "run" / "best.pt").exists()
    finetune(*more)
    assert (tmp_path / "run" / "best.pt").is_file()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--train", "stem"), "'stem' is not one of 'head', 'blocks_c', 'blocks_b', 'all'"),
        (("--train", "head", "--mixup", "0.2"), "--mixup: given with --train head"),
        (("--train", "head", "--cutmix", "1"), "--cutmix: given with --train head"),
        (("--train", "head", "--head-epochs", "3"), "--head-epochs: given with --train head; "),
        (("--train", "head", "--batch-norm", "group"), "--batch-norm: given with --train head; "),
        (("--bn-momentum", "0.1"), "--bn-momentum: given where batch norm keeps its statistics"),
        (("--feature-crops", "2", "--head-epochs", "0"), "--feature-crops: 2 with --train all"),
        (("--arch", "inception_resnet_v2"), "No such option '--arch'; see "),
    ],
)
def test_nonsense_is_one_line_and_leaves_nothing(finetune, tmp_path, more, line):
    assert_one_line(finetune(*more, status=2), line)
    assert not (tmp_path / "run").exists()


def test_weights_of_the_other_network_than_arch_says_are_one_line(begun, data, tmp_path):
    _, stderr = irv2("train", "--setting", "2", "--arch", "inception_resnet_v2", *OPTIONS,
                     "--init-from", str(begun), "--data", str(data), "--out", str(tmp_path / "run"),
                     status=2)  # fmt: skip
    assert_one_line(stderr, f"another network, {SLIM}; ")
    assert not (tmp_path / "run").exists()


LISTS = {
    "missing.csv": ("path,label\nat/0.png,cat\ngone.png,dog\n", "line 3: gone.png: missing; "),
    "case.csv": (
        "path,label\nat/0.png,cat\nat/1.png,Cat\n",
        'line 3: label "Cat", but "cat" on line 2',
    ),
    "empty.csv": ("", "line 1: nothing in the file; expected a first line path,label"),
    "nothing.csv": ("path,label\n", "no rows below its first line; expected one for each image"),
    "headless.csv": (
        "at/0.png,cat\nat/1.png,dog\n",
        "expected a first line path,label or path,label,sp",
    ),
    "singles.csv": (
        "path,label\nat/0.png,cat\nat/1.png,dog\n",
        "no rows of split val, but of train",
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_with_a_mistake_is_one_line_and_leaves_nothing(finetune, tmp_path, name):
    content, line = LISTS[name]
    write_images(tmp_path, 2, "at")
    (tmp_path / name).write_text(content)
    assert_one_line(finetune("--data", str(tmp_path / name), status=2), line)
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused_and_single_images_are_named(finetune, tmp_path):
    one, singles = tmp_path / "one", tmp_path / "singles"
    for split in ("train", "val"):
        write_images(one / split, 2, "cat")
        write_images(singles / split, 1, "cat", "dog")
    line = finetune("--data", str(one), status=2)
    assert_one_line(line, f"{one}/train: only one class, cat; expected two or more, ")
    assert not (tmp_path / "run").exists()
    said = finetune("--data", str(singles), "--train", "head", "--epochs", "1")
    assert "2 of 2 classes have a single image, from which little can be learnt: cat, dog" in said
    assert (tmp_path / "run" / "best.pt").is_file()


def test_what_is_no_divided_folder_names_the_way_to_one(finetune, data, tmp_path):
    picture = data / "val" / "dark" / "0.png"
    assert_one_line(finetune("--data", str(picture), status=2), f"{picture}: a single file; ")
    line = f"irv2 data split {data / 'train'} OUT --val 15%"
    assert_one_line(finetune("--data", str(data / "train"), status=2), line)
    assert not (tmp_path / "run").exists()


def assert_one_line(said: str, line: str) -> None:
    [error] = [line for line in said.splitlines() if line.startswith("error:")]
    assert line in error
