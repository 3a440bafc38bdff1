"""irv2-train as real processes: resumed, interrupted, killed, given nonsense."""

import dataclasses
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from in_process import irv2
from kill_and_resume import ENVIRONMENT, PLACES, Victim, Way, write_images
from PIL import Image
from same_run import assert_same_run, rows
from small_run import SMALL as SMALL_RUN
from small_run import wait_for

from irv2.checkpoint import Checkpoint, load_model
from irv2.data.dataset import open_split
from irv2.train.cli import main as program
from irv2.train.data.loader import batch_indices
from irv2.train.settings import SETTINGS

SMALL = [*SMALL_RUN, "--epochs", "2", "--workers", "1"]


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
    return [
        sys.executable,
        "-m",
        "irv2",
        "train",
        *SMALL,
        "--data",
        str(data),
        "--out",
        str(out),
        *more,
    ]


def train(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(data, out, *more), capture_output=True, text=True, env=ENVIRONMENT
    )


def train_here(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """In this process, where the start costs nothing; what is logged, pytest has."""
    return irv2("train", *SMALL, "--data", data, "--out", out, *more)


def refusal(data: Path, out: Path, *more: str, status: int = 2) -> str:
    """The one line of a run that ends with `status`."""
    result = train_here(data, out, *more)
    assert result.returncode == status, result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = train(data, out, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["best"] == str(out / "best.pt")
    return out


def test_a_run_leaves_everything_the_contract_names(finished):
    names = {path.name for path in finished.iterdir()}
    names -= {"tensorboard", ".lock"}  # the first where it is installed
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


def test_a_finished_run_says_so_and_is_left_alone(data, finished, caplog):
    caplog.set_level("INFO")
    before = (finished / "last.pt").read_bytes()
    assert train_here(data, finished).returncode == 0
    assert "already finished" in caplog.text
    assert (finished / "last.pt").read_bytes() == before


def test_a_finished_run_goes_on_to_a_later_epoch_as_if_it_had_been_begun_for_it(
    data, finished, tmp_path
):
    out = shutil.copytree(finished, tmp_path / "longer")
    assert train_here(data, out, "--epochs", "3").returncode == 0
    assert train_here(data, tmp_path / "whole", "--epochs", "3").returncode == 0
    assert_same_run(out, tmp_path / "whole")
    configs = [json.loads((run / "config.json").read_text()) for run in (out, tmp_path / "whole")]
    assert configs[0]["recipe"] == configs[1]["recipe"]
    assert "epochs 3 there and 2 here" in refusal(data, out)


def test_another_recipe_in_the_same_folder_is_refused(data, finished):
    line = refusal(data, finished, "--momentum", "0.9")
    assert "momentum 0.4737 there and 0.9 here" in line


def test_resume_insists_on_a_run(data, tmp_path):
    assert "a run to resume" in refusal(data, tmp_path / "none", "--resume")


@pytest.mark.parametrize(
    ("signal_number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_the_same_command_ends_like_a_run_never_stopped(
    data, finished, tmp_path, signal_number, status
):
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command(data, out, "--save-minutes", "0"),
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    wait_for(out / "last.pt", process)
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert Checkpoint.load(out / "last.pt").step < 10
    assert train_here(data, out, "--resume").returncode == 0
    assert_same_run(out, finished)


@pytest.mark.slow
def test_a_run_killed_in_a_save_an_evaluation_and_between_steps_ends_like_one_never_killed(
    tmp_path,
):
    """The short form of tests/long/kill_and_resume.py, the average of the weights included."""
    images, whole, killed = write_images(tmp_path / "data"), tmp_path / "whole", tmp_path / "killed"
    way = Way("a worker", [], ["--workers", "1", "--recipe", "modern"])
    subprocess.run(way.command(images, whole, 2), env=ENVIRONMENT, check=True, capture_output=True)
    command = way.command(images, killed, 2)
    for aim in PLACES:
        assert Victim(command, killed).kill_in(aim, np.random.default_rng(0)) == aim
    done = subprocess.run([*command, "--json"], env=ENVIRONMENT, capture_output=True, text=True)
    assert_same_run(killed, whole)

    result = json.loads(done.stdout)
    best = min(rows(killed), key=lambda row: row["ema_val_top1_error"])
    assert result["best_ema"] == str(killed / "best-ema.pt")
    assert (result["ema_epoch"], result["ema_top1_error"]) == (
        best["epoch"],
        best["ema_val_top1_error"],
    )
    assert f"ema: top-1 {rows(killed)[-1]['ema_val_top1_error']:6.3f}" in done.stderr
    average, last = Checkpoint.load(killed / "best-ema.pt"), Checkpoint.load(killed / "last.pt")
    if average.epoch == last.epoch:
        assert torch.equal(
            average.state_dict["classifier.weight"], last.training["ema"]["classifier.weight"]
        )
    assert load_model(killed / "best-ema.pt")(torch.zeros(1, 3, 75, 75)).shape == (1, 2)


def test_a_diverging_run_stops_with_one_line(data, tmp_path):
    line = refusal(data, tmp_path / "diverged", "--learning-rate", "1e30", status=1)
    assert "finite" in line
    assert f"--out NEW --learning-rate {1e30 / 2:g}, or with --warmup-steps" in line


def test_a_state_that_is_not_finite_replaces_no_checkpoint(data, tmp_path):
    """The first step's weights are huge, the second's are no numbers, whatever its loss."""
    out = tmp_path / "diverged"
    line = refusal(data, out, "--learning-rate", "1e30", "--save-minutes", "0", status=1)
    assert line.startswith("error: step 2: weights, statistics or loss are not finite")
    assert f"--out NEW --init-from {out}/last.pt --learning-rate" in line
    last = Checkpoint.load(out / "last.pt")
    assert last.step == 1
    assert all(value.isfinite().all() for value in last.state_dict.values())


def test_a_run_that_learns_nothing_stops_and_says_what_to_try(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("one", "other"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(16):
                pixels = rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    out = tmp_path / "run"
    more = ("--learning-rate", "1e-9", "--save-minutes", "0", "--chance-steps", "4")
    line = refusal(tmp_path, out, *more, status=1)
    assert re.search(r"step 4: top-1 error .* of the last 32 images, as by guessing", line)
    assert f"--out NEW --init-from {out}/last.pt --learning-rate 5e-10" in line
    assert Checkpoint.load(out / "last.pt").step == 3


def test_a_truncated_image_stops_the_run_after_saving_and_once_mended_it_goes_on(
    data, finished, tmp_path, caplog
):
    caplog.set_level("INFO")
    images = tmp_path / "data"
    shutil.copytree(data, images)
    recipe = dataclasses.replace(SETTINGS["2"], batch_size=8, bn_group=4)
    folder = open_split(images, "train")
    victim = folder.path(batch_indices(folder.labels, recipe, 1)[2][0])
    whole = victim.read_bytes()
    victim.write_bytes(whole[:2000])
    out = tmp_path / "run"
    line = refusal(images, out)
    assert line.startswith(f"error: {victim}: ")
    assert "; replace the file or pass --bad-images skip; `irv2 data check " in line
    assert f"saved {out}/last.pt; resume with: " in caplog.text
    assert Checkpoint.load(out / "last.pt").step == 2  # of the two batches before
    victim.write_bytes(whole)
    assert train_here(images, out).returncode == 0
    assert_same_run(out, finished)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_after_saving(data, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(data, out, "--epochs", "500", "--workers", "2"),
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    wait_for(out / "metrics.jsonl", process)
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        kill_a_child(process.pid)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    [line] = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: a decoding process: was lost (")
    assert f"saved {out}/last.pt; resume with: irv2-train" in stderr
    assert "Traceback" not in stderr
    assert Checkpoint.load(out / "last.pt").step > 0


def kill_a_child(pid: int) -> None:
    """What the kernel does where memory is short."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    with suppress(FileNotFoundError, ProcessLookupError):  # each may have just ended
        for child in children.read_text().split()[:1]:
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.slow
def test_a_run_needs_what_it_began_with_only_once(data, finished, tmp_path):
    begin_with, out = tmp_path / "old.pt", tmp_path / "run"
    shutil.copy(finished / "best.pt", begin_with)
    more = ("--init-from", str(begin_with), "--epochs", "1")
    assert train_here(data, out, *more).returncode == 0
    (out / "metrics.jsonl").unlink()  # as killed before the evaluation's end
    begin_with.unlink()
    result = train_here(data, out, *more)
    assert result.returncode == 0, result.stderr
    line = refusal(data, tmp_path / "new", *more)
    assert f"error: {begin_with}: no such file" in line


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_which_no_image_can_be_read_is_one_line(data, tmp_path, split):
    images = tmp_path / "data"
    shutil.copytree(data, images)
    for path in (images / split).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:2000])
    line = refusal(images, tmp_path / "run", "--bad-images", "skip")
    assert line == f"error: {images / split}: no image could be read; expected at least one"


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_line_and_leaves_the_last_save(data, finished, tmp_path):
    begun = tmp_path / "begun"
    process = subprocess.Popen(
        command(data, begun, "--save-minutes", "0"), stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    wait_for(begun / "last.pt", process)
    process.terminate()
    assert process.wait(timeout=60) == 143
    before = (begun / "last.pt").read_bytes()
    with small_disk(tmp_path / "small", len(before) * 3 // 2) as (small, limits):
        out = small / "run"
        shutil.copytree(begun, out)
        result = subprocess.run(
            command(data, out), capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=limits
        )
        assert result.returncode == 1, result.stderr
        [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert line.startswith(f"error: {out}/last.pt: can't be written")
        assert "MB to write, 0." in line
        assert line.endswith("free some; the same command goes on where this one stopped")
        assert (out / "last.pt").read_bytes() == before
        assert not list(out.glob(".*.tmp"))
        shutil.copytree(out, tmp_path / "large")
    assert train_here(data, tmp_path / "large").returncode == 0
    assert_same_run(tmp_path / "large", finished)


@contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[tuple[Path, Callable[[], None] | None]]:
    """A folder with room for so much; where mounting is not allowed a limit on a file's size.

    The limit is set by a function for the child process.
    """
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes // 2,) * 2)
        return
    try:
        yield path, None
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_the_first_lines_and_the_record_hold_the_whole_recipe_and_the_machine(data, tmp_path):
    out, more = tmp_path / "run", ("--deterministic", "--no-flip", "--micro-batch", "4")
    result = train(data, out, "--epochs", "1", *more)
    assert result.returncode == 0, result.stderr
    assert "setting 2 has no published result" in result.stderr
    assert "momentum 0.4737" in result.stderr
    assert "deterministic True" in result.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"]["deterministic"] is True
    assert config["recipe"]["flip"] is False
    assert Checkpoint.load(out / "last.pt").recipe == config["recipe"]
    machine = config["machine"]
    assert (machine["workers"], machine["threads"], machine["processes"]) == (1, 1, 1)
    assert machine["computation"]["micro_batch"] == 4
    assert machine["versions"]["torch"] == torch.__version__
    assert shlex.split(machine["command"])[-4:] == list(more[-4:])


def test_a_missing_gpu_is_one_line(data, tmp_path):
    result = subprocess.run(
        command(data, tmp_path / "run", "--device", "cuda"),
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 1
    assert result.stderr == (
        "error: --device cuda: torch finds no GPU; expected a GPU; use --device cpu\n"
    )
    assert not (tmp_path / "run").exists()


def test_images_that_changed_since_the_run_started_are_noticed(data, finished, tmp_path):
    (tmp_path / "data").mkdir()
    subprocess.run(["cp", "-r", f"{data}/train", f"{data}/val", tmp_path / "data"], check=True)
    next((tmp_path / "data" / "train" / "dark").iterdir()).unlink()
    line = refusal(tmp_path / "data", finished)
    assert "other images: num_train 36 there and 35 here, files_sha256 (the names of files)" in line
    assert not re.search("[0-9a-f]{16}", line)


def test_a_class_in_val_that_is_not_in_train_is_refused(data, tmp_path):
    (tmp_path / "val" / "bright").mkdir(parents=True)
    (tmp_path / "train").symlink_to(data / "train")
    assert "class bright is unknown" in refusal(tmp_path, tmp_path / "run")


def test_show_model_prints_the_published_networks_numbers():
    arguments = ["--setting", "2", "--show-model"]
    assert "31,574,440" in CliRunner().invoke(program, arguments).stdout
    summary = json.loads(CliRunner().invoke(program, [*arguments, "--json"]).stdout)
    assert summary["num_convolutions"] == 132
    assert summary["num_parameters"] == 31_574_440
    assert summary["flop"] == pytest.approx(18.4e9, rel=0.002)
    slim = CliRunner().invoke(program, [*arguments, "--arch", "inception_resnet_v2_slim"]).stdout
    assert "55,843,464" in slim


def test_a_second_trainer_in_the_same_folder_is_refused(data, tmp_path):
    out, more = tmp_path / "shared", ("--save-minutes", "0", "--epochs", "100")
    first = subprocess.Popen(command(data, out, *more), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        wait_for(out / "last.pt", first)
        line = refusal(data, out, *more)
    finally:
        first.kill()
        first.wait(timeout=60)
    assert "another irv2-train is at work in it" in line


@pytest.mark.parametrize(
    ("option", "value"), [("--momentum", "0"), ("--seed", "99999999999999999999")]
)
def test_values_that_no_run_can_use_are_refused_before_anything_is_written(
    data, tmp_path, option, value
):
    refusal(data, tmp_path / "run", option, value)
    assert not (tmp_path / "run").exists()


FLOAT_OPTIONS = [
    option.opts[0] for option in program.params if isinstance(option.type, click.FloatRange)
]


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("option", FLOAT_OPTIONS)
def test_numbers_that_are_not_finite_are_refused_by_their_option(data, tmp_path, option, value):
    [nargs] = [parameter.nargs for parameter in program.params if option in parameter.opts]
    line = refusal(data, tmp_path / "run", option, *[value] * nargs)
    assert option in line
    assert value in line
    assert not (tmp_path / "run").exists()


def test_a_run_records_the_options_of_a_file_in_its_command_and_goes_on_with_it(
    tmp_path, monkeypatch
):
    """The recorded command holds where the file is gone; another recipe in it is refused."""
    file = tmp_path / "irv2.toml"
    text = "[train]\nsetting = '2'\nepochs = 1\nwidth = 0.02\nimage-size = 75\nlimit = 40\n"
    file.write_text(text)
    options = ["train", "--blocks", "1", "1", "1", "--out", "run"]
    command = [sys.executable, "-m", "irv2", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert f"{file}: --setting 2 --epochs 1 " in done.stderr
    recorded = json.loads((tmp_path / "run/config.json").read_text())["machine"]["command"]
    file.unlink()
    monkeypatch.chdir(tmp_path)
    assert irv2("train", *shlex.split(recorded)[1:]).returncode == 0
    file.write_text(text.replace("0.02", "0.03"))
    other = irv2(*options)
    assert other.returncode == 2
    assert "width" in other.stderr.splitlines()[-1]
