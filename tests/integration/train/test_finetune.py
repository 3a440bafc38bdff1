"""irv2 finetune as real processes: both phases, killed, out of time, given nonsense."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kill_and_resume import ENVIRONMENT, write_images
from same_run import assert_same_run, rows
from small_run import SMALL

from irv2.checkpoint import Checkpoint

OPTIONS = ("--batch-size", "16", "--bn-group", "4", "--device", "cpu", "--workers", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training images of two classes that differ in brightness; few of validation."""
    root = write_images(tmp_path_factory.mktemp("data"))
    for file in (root / "val").rglob("*.png"):
        if int(file.stem) >= 10:
            file.unlink()
    return root


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of TF-slim's network that has hardly been trained."""
    out = tmp_path_factory.mktemp("begun") / "run"
    irv2("train", *SMALL, "--arch", "inception_resnet_v2_slim", "--epochs", "1", "--workers", "0",
         "--data", str(data), "--out", str(out))  # fmt: skip
    return out / "best.pt"


def irv2(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irv2", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done


def finetune(begun: Path, data: Path, out: Path, *more: str, status: int = 0) -> str:
    """Its stderr."""
    arguments = ("finetune", str(begun), "--data", str(data), "--out", str(out), *OPTIONS, *more)
    return irv2(*arguments, status=status).stderr


def changed(one: Path, other: Path) -> set[str]:
    """Parts of the network in which two checkpoints differ, statistics included."""
    mine, theirs = Checkpoint.load(one).state_dict, Checkpoint.load(other).state_dict
    return {n.partition(".")[0] for n in mine if not torch.equal(mine[n], theirs[n])}


def test_both_phases_train_what_they_say_and_leave_runs_of_their_own(begun, data, tmp_path):
    out = tmp_path / "run"
    more = ("--train", "blocks_c", "--feature-crops", "2", "--head-epochs", "3", "--epochs", "2")
    stderr = finetune(begun, data, out, *more)
    assert "phase 1 of 2" in stderr
    assert "phase 2 of 2" in stderr
    assert changed(begun, out / "head" / "best.pt") == {"classifier"}
    assert changed(out / "head" / "best.pt", out / "best.pt") == {"blocks_c", "head", "classifier"}
    assert [len(rows(run)) for run in (out / "head", out)] == [3, 2]
    recipe = json.loads((out / "config.json").read_text())["recipe"]
    assert (recipe["setting"], recipe["trained"]) == ("finetune", "blocks_c")
    assert recipe["arch"] == "inception_resnet_v2_slim"
    assert "already finished" in finetune(begun, data, out, *more)


def test_every_augmentation_is_for_both_phases_except_that_a_head_s_images_are_not_mixed(
    begun, data, tmp_path
):
    out = tmp_path / "run"
    more = ("--min-area", "0.5", "--auto-augment", "trivial", "--erase", "0.25", "--mixup", "0.2",
            "--cutmix", "1", "--head-epochs", "1", "--epochs", "1")  # fmt: skip
    finetune(begun, data, out, *more)
    for run, mixed in ((out / "head", [0, 0]), (out, [0.2, 1])):
        recipe = json.loads((run / "config.json").read_text())["recipe"]
        named = [recipe[name] for name in ("min_area", "auto_augment", "erase")]
        assert named == [0.5, "trivial", 0.25]
        assert [recipe["mixup"], recipe["cutmix"]] == mixed


def test_a_head_alone_has_the_errors_that_eval_finds(begun, data, tmp_path):
    finetune(begun, data, tmp_path / "run", "--train", "head", "--epochs", "3")
    best = Checkpoint.load(tmp_path / "run" / "best.pt")
    found = irv2("eval", str(tmp_path / "run" / "best.pt"), "--data", str(data), "--json")
    assert json.loads(found.stdout)["top1_error"] == best.metrics["val_top1_error"]


def test_a_run_killed_while_it_computes_features_goes_on_where_it_was(begun, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--train", "head", "--epochs", "2", "--feature-crops", "20")
    finetune(begun, data, whole, *more)
    command = [sys.executable, "-m", "irv2", "finetune", str(begun), "--data", str(data),
               "--out", str(killed), *OPTIONS, *more]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not (files := list(killed.rglob("train-3-*.npz"))):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = files[0].stat().st_mtime_ns
    assert not (killed / "metrics.jsonl").exists()
    finetune(begun, data, killed, *more)
    assert files[0].stat().st_mtime_ns == written
    assert_same_run(killed, whole)


def test_a_head_killed_between_saves_trains_the_epochs_since_again(begun, data, tmp_path):
    """Its epochs are shorter than writing a checkpoint, so not every one is saved."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--train", "head", "--epochs", "100", "--feature-crops", "1")
    finetune(begun, data, whole, *more)
    command = [sys.executable, "-m", "irv2", "finetune", str(begun), "--data", str(data),
               "--out", str(killed), *OPTIONS, *more]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
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
    assert "are trained again" in finetune(begun, data, killed, *more)
    assert [row["epoch"] for row in rows(killed)] == list(range(1, 101))
    assert_same_run(killed, whole)


def num_unsaved(run: Path) -> int:
    """How many of its finished epochs ended after the last save."""
    if not (run / "metrics.jsonl").exists():
        return 0
    saved = Checkpoint.load(run / "last.pt").step
    return sum(row["step"] > saved for row in rows(run))


def test_patience_ends_a_run_that_gets_no_better(begun, data, tmp_path):
    more = ("--head-epochs", "0", "--epochs", "50", "--learning-rate", "1e-9", "--patience", "2")
    finetune(begun, data, tmp_path / "run", *more)
    assert len(rows(tmp_path / "run")) == 3
    assert "already finished" in finetune(begun, data, tmp_path / "run", *more)


def test_a_time_budget_shorter_than_an_epoch_leaves_the_best_there_is(begun, data, tmp_path):
    more = ("--head-epochs", "0", "--epochs", "50", "--time-budget", "0.001")
    stderr = finetune(begun, data, tmp_path / "run", *more)
    assert "time is up after 1 of 4 steps" in stderr
    [row] = rows(tmp_path / "run")
    assert row["step"] == 1
    assert (tmp_path / "run" / "best.pt").is_file()
    assert "already finished" in finetune(begun, data, tmp_path / "run", *more)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--train", "stem"), "'stem' is not one of 'head', 'blocks_c', 'blocks_b', 'all'"),
        (("--train", "head", "--mixup", "0.2"), "--mixup: given with --train head"),
        (("--train", "head", "--cutmix", "1"), "--cutmix: given with --train head"),
        (("--feature-crops", "2", "--head-epochs", "0"), "--feature-crops: 2 with --train all"),
    ],
)
def test_nonsense_is_one_line_and_leaves_nothing(begun, data, tmp_path, more, line):
    stderr = finetune(begun, data, tmp_path / "run", *more, status=2)
    [error] = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert line in error
    assert not (tmp_path / "run").exists()
