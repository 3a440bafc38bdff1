"""irv2-train as real processes: resumed, interrupted, killed, given nonsense."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from same_run import assert_same_run

from irv2.checkpoint import Checkpoint, load_model

SMALL = [
    "--setting", "2", "--width", "0.1", "--blocks", "1", "1", "1", "--image-size", "75",
    "--batch-size", "8", "--bn-group", "4", "--epochs", "2", "--workers", "1", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness: 36 training and 8 validation images."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, num in (("train", 18), ("val", 4)):
        for label, low in (("dark", 0), ("light", 128)):
            (root / split / label).mkdir(parents=True)
            for i in range(num):
                pixels = rng.integers(low, low + 128, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "irv2", "train", *SMALL, "--data", str(data), "--out", str(out),
            *more]  # fmt: skip


def environment() -> dict[str, str]:
    # Bit-identical results need a fixed number of threads.
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def train(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(data, out, *more), capture_output=True, text=True, env=environment()
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = train(data, out, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["best"] == str(out / "best.pt")
    return out


def test_a_run_leaves_everything_the_contract_names(finished):
    names = {path.name for path in finished.iterdir()} - {"tensorboard"}  # where it is installed
    assert names == {"last.pt", "best.pt", "config.json", "metrics.jsonl", "curves.png"}
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [5, 10]
    config = json.loads((finished / "config.json").read_text())
    assert (config["recipe"]["setting"], config["recipe"]["momentum"]) == ("2", 0.4737)
    with Image.open(finished / "curves.png") as curves:
        assert curves.format == "PNG"


def test_best_is_the_epoch_with_the_lowest_error_and_loads_as_a_model(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    best = Checkpoint.load(finished / "best.pt")
    assert best.epoch == min(rows, key=lambda row: row["val_top1_error"])["epoch"]
    assert best.classes == ["dark", "light"]
    assert best.training == {}
    assert load_model(finished / "best.pt")(torch.zeros(1, 3, 75, 75)).shape == (1, 2)


def test_a_finished_run_says_so_and_is_left_alone(data, finished):
    before = (finished / "last.pt").read_bytes()
    result = train(data, finished)
    assert result.returncode == 0
    assert "finished before" in result.stderr
    assert (finished / "last.pt").read_bytes() == before


def test_another_recipe_in_the_same_folder_is_refused(data, finished):
    result = train(data, finished, "--momentum", "0.9")
    assert result.returncode == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "momentum 0.4737 there and 0.9 here" in line


def test_resume_insists_on_a_run(data, tmp_path):
    result = train(data, tmp_path / "none", "--resume")
    assert result.returncode == 2
    assert "a run to resume" in result.stderr


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_ends_like_a_run_never_stopped(
    data, finished, tmp_path, signal_number, status
):
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command(data, out, "--save-minutes", "0"), stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    wait_for(out / "last.pt", process)
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert Checkpoint.load(out / "last.pt").step < 10
    assert train(data, out, "--resume").returncode == 0
    assert_same_run(out, finished)


def test_a_run_killed_again_and_again_ends_like_a_run_never_killed(data, finished, tmp_path):
    out = tmp_path / "killed"
    rng = np.random.default_rng(7)
    for _ in range(3):
        process = subprocess.Popen(
            command(data, out, "--save-minutes", "0"), stderr=subprocess.DEVNULL, env=environment()
        )
        wait_for(out / "last.pt", process)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.wait(timeout=60)
    result = train(data, out)
    assert result.returncode == 0, result.stderr
    assert_same_run(out, finished)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, "ended before its first checkpoint"
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_diverging_run_stops_with_one_line(data, tmp_path):
    result = train(data, tmp_path / "diverged", "--learning-rate", "1e30")
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "finite" in line
    assert "lower --learning-rate" in line
    assert "Traceback" not in result.stderr


def test_images_that_changed_since_the_run_started_are_noticed(data, finished, tmp_path):
    (tmp_path / "data").mkdir()
    subprocess.run(["cp", "-r", f"{data}/train", f"{data}/val", tmp_path / "data"], check=True)
    next((tmp_path / "data" / "train" / "dark").iterdir()).unlink()
    result = train(tmp_path / "data", finished)
    assert result.returncode == 2
    assert "other images" in result.stderr


def test_a_class_in_val_that_is_not_in_train_is_refused(data, tmp_path):
    (tmp_path / "val" / "bright").mkdir(parents=True)
    (tmp_path / "train").symlink_to(data / "train")
    result = train(tmp_path, tmp_path / "run")
    assert result.returncode == 2
    assert "class bright is unknown" in result.stderr


def test_show_model_prints_the_published_networks_numbers():
    program = [sys.executable, "-m", "irv2", "train", "--setting", "2", "--show-model"]
    table = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert "31,574,440" in table
    summary = json.loads(
        subprocess.run([*program, "--json"], capture_output=True, text=True, check=True).stdout
    )
    assert summary["num_convolutions"] == 132
    assert summary["num_parameters"] == 31_574_440
    assert summary["flop"] == pytest.approx(18.4e9, rel=0.002)


def test_a_second_trainer_in_the_same_folder_is_refused(data, tmp_path):
    out, more = tmp_path / "shared", ("--save-minutes", "0", "--epochs", "100")
    first = subprocess.Popen(
        command(data, out, *more), stderr=subprocess.DEVNULL, env=environment()
    )
    try:
        wait_for(out / "last.pt", first)
        second = train(data, out, *more)
    finally:
        first.kill()
        first.wait(timeout=60)
    assert second.returncode == 2
    assert "another irv2-train is at work in it" in second.stderr


@pytest.mark.parametrize(
    ("option", "value"), [("--momentum", "0"), ("--seed", "99999999999999999999"),
                          ("--learning-rate", "nan")]
)  # fmt: skip
def test_values_that_no_run_can_use_are_refused_before_anything_is_written(
    data, tmp_path, option, value
):
    result = train(data, tmp_path / "run", option, value)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
