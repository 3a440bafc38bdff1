"""Several processes under torchrun: the same numbers as one, and the same safety."""

import dataclasses
import errno
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from project import ROOT
from same_run import assert_same_run, rows
from small_run import SMALL as SMALL_RUN
from small_run import wait_for

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import open_split
from irv2.evaluate import EvaluationOptions, evaluate_model
from irv2.train.data.loader import batch_for_rank, batch_indices
from irv2.train.settings import SETTINGS

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
]
SMALL = [*SMALL_RUN, "--workers", "0"]

MIXED = {"mixup": 0.2, "cutmix": 1.0}  # five steps have both kinds


def environment(**more: str) -> dict[str, str]:
    """This process's, with what its fixtures set; equal bits need a fixed number of threads."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def run(*command: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env=environment(**more),
        cwd=ROOT,
    )


State = dict[str, torch.Tensor]


def states_after(
    out: Path, launcher: list[str], micro_batches: str, arch: str, recipe: dict[str, float]
) -> list[dict[str, State]]:
    """By dtype, the networks after some steps of 2 x 32 images (tests/helpers/step_worker.py)."""
    out.mkdir()
    done = run(*launcher, ROOT / "tests/helpers/step_worker.py", out, micro_batches, arch,
               json.dumps(recipe))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{name}.pt") for name in micro_batches.split(",")]


def largest_difference(one: State, other: State) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("arch", "recipe"),
    [
        ("inception_resnet_v2", {}),
        pytest.param("inception_resnet_v2_slim", {}, marks=pytest.mark.slow),
        pytest.param("inception_resnet_v2", MIXED, marks=pytest.mark.slow),
        pytest.param("inception_resnet_v2", {"class_weights": "balanced"}, marks=pytest.mark.slow),
    ],
)
def test_groups_micro_batches_and_processes_give_the_same_network(tmp_path, arch, recipe):
    groups, micro_batches = states_after(tmp_path / "alone", [sys.executable], "0,32", arch, recipe)
    [processes] = states_after(tmp_path / "processes", TORCHRUN, "0", arch, recipe)
    # Groups add up in another order: of 16 digits over 9 remain after five steps, of 7 about 5
    # after one.
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-5)):
        assert largest_difference(micro_batches[dtype], processes[dtype]) == 0
        assert largest_difference(groups[dtype], processes[dtype]) < tolerance


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness: 35 training and 40 validation images.

    Of these one process classifies 32, the other 8; every third is of no brightness in particular.
    """
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, nums in (("train", (18, 17)), ("val", (20, 20))):
        for label, low, num in (("dark", 0, nums[0]), ("light", 128, nums[1])):
            (root / split / label).mkdir(parents=True)
            for i in range(num):
                begin = rng.integers(0, 128) if split == "val" and i % 3 == 0 else low
                pixels = rng.integers(begin, begin + 128, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def train(data: Path, out: Path, *more: object) -> list[str]:
    """The program and its arguments, for after a launcher (tests/helpers/group_worker.py)."""
    program = ROOT / "tests/helpers/group_worker.py"
    return [str(part) for part in (program, *SMALL, "--data", data, "--out", out, *more)]


def train_alone(data: Path, out: Path, *more: object) -> Path:
    """One process, micro-batches of a group: what two processes must equal."""
    done = run(sys.executable, *train(data, out, "--micro-batch", 4, "--epochs", 2, *more))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_alone(data, tmp_path_factory.mktemp("runs") / "alone")


def test_what_an_epoch_reports_are_the_errors_of_the_file_just_written(data, alone):
    row = rows(alone)[-1]
    expected = evaluate_model(alone / "last.pt", data, None, "cpu", "error", EvaluationOptions())
    expected = expected.to_json()
    assert (expected["n"], expected["top1_error"]) == (40, row["val_top1_error"])
    assert row["num_val_images"] == 40
    assert 0 < row["val_top1_error"] < 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="the paper's"),
        pytest.param(
            (
                "--arch",
                "inception_resnet_v2_slim",
                "--recipe",
                "modern",
                "--checkpoint-activations",
            ),
            id="TF-slim's, with all that a run may have",
        ),
    ],
)
def test_a_stopped_run_of_two_processes_resumes_and_equals_micro_batches_of_one(
    data, request, tmp_path, more
):
    one = train_alone(data, tmp_path / "one", *more) if more else request.getfixturevalue("alone")
    out = tmp_path / "two"
    command = [*TORCHRUN, *train(data, out, "--epochs", 2, *more)]
    process = subprocess.Popen(
        [*command, "--save-minutes", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    wait_for(out / "last.pt", process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert "error: stopped by SIGTERM" in stderr
    [line] = [line for line in stderr.splitlines() if "resume with: " in line]
    same = shlex.split(line.partition("resume with: ")[2])
    assert same == [*command, "--save-minutes", "0", "--resume"]
    done = run(*same, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"] == str(out / "best.pt")
    assert done.stderr.count("epoch 2/2  lr") == 1
    assert_same_run(out, one)


@pytest.mark.slow
def test_losing_one_process_ends_the_other_with_one_line_and_torchrun_starts_both_again(
    data, alone, tmp_path
):
    out = tmp_path / "lost"
    command = [*TORCHRUN, "--max-restarts", "1", *train(data, out, "--epochs", 2)]
    process = subprocess.Popen(
        [*command, "--save-minutes", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    wait_for(out / "last.pt", process)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert stderr.count("error: ") == stderr.count("error: process 0 of 2: lost the others") == 1
    assert "resuming" in stderr
    assert_same_run(out, alone)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unreadable_image_of_one_process_ends_both_with_one_line_after_a_save(
    data, alone, tmp_path, split
):
    images = tmp_path / "data"
    shutil.copytree(data, images)
    folder = open_split(images, split)
    recipe = dataclasses.replace(SETTINGS["2"], batch_size=8, bn_group=4)
    of_second = batch_for_rank(
        batch_indices(np.zeros(35, np.int64), recipe, 1)[2], recipe, rank=1, world_size=2
    )
    victim = folder.path(of_second[0] if split == "train" else 39)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:2000])
    out = tmp_path / "two"
    command = [*TORCHRUN, *train(images, out, "--epochs", 2)]
    done = run(*command)
    assert done.returncode == 1  # torchrun's own, for any failure
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {victim}: ")
    assert done.stderr.count("resume with: ") == 1
    assert Checkpoint.load(out / "last.pt").step == (2 if split == "train" else 5)
    victim.write_bytes(whole)
    assert run(*command).returncode == 0
    assert_same_run(out, alone)


@pytest.mark.parametrize(
    ("options", "line", "status"),
    [
        (["--resume"], "--resume: no ", 2),
        pytest.param(
            ["--limit", 1],
            "training images: 1; expected at least 2",
            2,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--init-from", "gone.pt"], "gone.pt: no such file", 2, marks=pytest.mark.slow
        ),
        (["--out", "/dev/null/run"], f"/dev/null/run: {os.strerror(errno.ENOTDIR)}", 1),
        pytest.param(
            ["--batch-size", 12],
            "--batch-size: 12 images on 2 processes",
            2,
            marks=pytest.mark.slow,
        ),
        pytest.param(["--init-from", __file__], f"{__file__}: ", 2, marks=pytest.mark.slow),
        pytest.param(["--device", "cuda"], "--device cuda: ", 1, marks=pytest.mark.slow),
    ],
)
def test_an_error_and_the_file_of_options_are_told_once(data, tmp_path, options, line, status):
    file = tmp_path / "irv2.toml"
    file.write_text("save-minutes = 9\n")  # of a program that stands alone
    environment = {"CUDA_VISIBLE_DEVICES": "", "IRV2_CONFIG": str(file)}
    done = run(*TORCHRUN, *train(data, tmp_path / "none", *options), **environment)
    assert done.returncode == 1  # torchrun's own, for any failure
    assert done.stderr.count("error: ") == done.stderr.count(f"error: {line}") == 1
    assert done.stderr.count(f"{file}: --save-minutes 9") == 1
    assert f"exitcode  : {status}" in done.stderr
    assert not (tmp_path / "none" / "last.pt").exists()


def test_a_machine_whose_copy_of_the_data_differs_is_refused(data, tmp_path):
    for rank in (0, 1):
        shutil.copytree(data, tmp_path / f"data{rank}")
    for split in ("train", "val"):  # of other labels
        (tmp_path / "data1" / split / "dark").rename(tmp_path / "data1" / split / "night")
    command = shlex.join([sys.executable, *train(tmp_path / "data", tmp_path / "out")])
    command = command.replace(f"{tmp_path}/data", f"{tmp_path}/data$RANK")
    done = run(*TORCHRUN, "--no-python", "bash", "-c", f"exec {command}")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {tmp_path}/data1: here 35 + 40 images, or other names or")
    assert not (tmp_path / "out").exists()


def test_sigterm_ends_a_process_that_waits_for_the_others(data, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    first_of_two = environment(
        MASTER_ADDR=address[0],
        MASTER_PORT=str(address[1]),
        RANK="0",
        WORLD_SIZE="2",
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
    )
    command = [sys.executable, *train(data, tmp_path / "out")]
    process = subprocess.Popen(command, env=first_of_two, cwd=ROOT)
    try:
        until = time.monotonic() + 60
        while not is_answered(address):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out").exists()


def is_answered(address: tuple[str, int]) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(address):
        return True
    return False


def process_of_rank(rank: int, launcher: int) -> int:
    """The process id of a rank among torchrun's children."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    [found] = [
        int(child)
        for child in children
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes()
    ]
    return found
