"""The command line as a person or a script meets it: real processes, signals, exit statuses."""

import errno
import gzip
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process_output import read_line
from tiny_bundle import write_tiny_bundle

from irv2 import __version__
from irv2.cli.main import PROGRAMS, main
from irv2.errors import ImageError, ImageReason, Irv2Error, Overloaded

BIN = Path(sys.executable).parent
# The order of the pipeline, and every program's own statuses
PIPELINE = ["data", "train", "plot", "eval", "export", "verify", "inspect", "serve", "classify"]


def run(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], text=True, capture_output=True, timeout=120, **options
    )


def irv2(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(BIN / "irv2", *arguments)


def error_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of a foreseen failure; nothing but it on stderr, nothing at all on stdout."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_help_lists_the_programs_in_the_order_of_the_pipeline():
    listed = [name for name in PROGRAMS if name in PIPELINE]
    assert listed == PIPELINE
    done = irv2("--help")
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"^  ([a-z]+)  +\S", done.stdout, re.MULTILINE)
    assert found == list(PROGRAMS)
    for entry in PROGRAMS.values():
        assert entry.summary in done.stdout


def test_help_imports_nothing_heavy():
    program = """
import sys
from irv2.cli.main import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
heavy = {"torch", "onnx", "onnxruntime", "grpc", "cv2", "PIL", "numpy", "scipy", "sklearn"}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_no_program_at_all_shows_the_help_and_fails():
    for command in ([], ["data"]):
        done = irv2(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Usage: irv2")


@pytest.mark.parametrize("name", [*PROGRAMS, "data sample", "data fashion-mnist"])
def test_every_program_explains_itself_and_has_the_common_options(name):
    command: object = main
    for part in name.split():
        command = command.get_command(None, part)  # type: ignore[attr-defined]
    assert command.help
    if name in ("data", "bench"):  # groups
        return
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--debug", "--version", "--json"} <= options
    assert all(getattr(p, "help", "") for p in command.params if p.param_type_name == "option")


@pytest.mark.parametrize(
    "program", ["irv2", "irv2-train", "irv2-export", "irv2-serve", "irv2-classify"]
)
def test_every_console_script_knows_its_version(program):
    done = run(BIN / program, "--version")
    assert (done.returncode, done.stdout) == (0, f"irv2, version {__version__}\n")


def test_python_m_irv2_is_the_same_program():
    assert run(sys.executable, "-m", "irv2", "--help").stdout == irv2("--help").stdout


def test_json_is_one_object_on_stdout_and_nothing_else(tmp_path):
    done = irv2("data", "sample", "--out", tmp_path / "digits", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"out": str(tmp_path / "digits"), "num_images": 1797}
    people = irv2("data", "sample", "--out", tmp_path / "more")
    assert people.stdout == f"1797 images in {tmp_path / 'more'}\n"


def test_eval_prints_one_object_even_where_it_logs(tmp_path, sample):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    shutil.copytree(sample / "val", tmp_path / "data/val")
    for i, folder in enumerate(sorted((tmp_path / "data/val").iterdir())):
        folder.rename(folder.with_name(f"class {i}"))
    (tmp_path / "data/val/class 0/notes.jpg").write_text("no image")
    arguments = ["eval", bundle, "--data", tmp_path / "data", "--limit", 20]
    done = irv2(*arguments, "--bad-images", "skip", "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["n"] == 20
    assert 0 <= result["top5_error"] <= result["top1_error"] <= 100
    assert "class 0/notes.jpg" in done.stderr
    assert "1 files are no images: class 0/notes.jpg" in error_line(irv2(*arguments), 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope"], "nope.*; see irv2 --help"),
        (["data", "sample"], "--out.*; see irv2 data sample --help"),
        (["data", "sample", "--nope"], "--nope.*; see irv2 data sample --help"),
        (["eval", "/gone"], "/gone"),
        (["eval", "/", "--limit", "0"], "--limit"),
        (["eval", "/", "--device", "tpu"], "--device.*tpu"),
        (["eval", "/", "--data", "/"], "no bundle.json in it; expected a bundle"),
        (["plot", "/", "-o", "/gone/p.png"], "/gone/p.png: no such folder"),
        (["graph", "/", "-o", "/gone/g.png"], "/gone/g.png: no such folder"),
        (["diff", "a", "b", "-o", "/gone/d.png"], "/gone/d.png: no such folder"),
        (["eval", "/", "--ledger", "/gone/l.npz"], "/gone/l.npz: no such folder"),
        (["train"], "--setting.*paper.*; see irv2 train --help"),
    ],
)
def test_wrong_usage_or_input_is_status_2_and_one_line(arguments, expected):
    assert re.search(expected, error_line(irv2(*arguments), 2))


def test_a_failure_of_the_machine_is_status_1_and_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    line = error_line(irv2("data", "sample", "--out", tmp_path / "file" / "digits"), 1)
    assert os.strerror(errno.ENOTDIR) in line
    assert str(tmp_path / "file") in line


def test_a_full_disk_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [BIN / "irv2", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: standard output: can't be written ({os.strerror(errno.ENOSPC)}); expected free "
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("program", ["sample", "shard", "split"])
def test_a_data_folder_that_has_no_room_is_named(sample, tmp_path, program):
    out = tmp_path / "out"
    arguments = {
        "sample": ["--out", out],
        "shard": [sample, out],
        "split": [sample / "train", out, "--val", "10%", "--link", "copy"],
    }[program]
    done = subprocess.run(
        [BIN / "irv2", "data", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]  # after, perhaps, a warning about the cache
    size = r"[1-9]\.\d MB to write, 0\.0 MB by ulimit -f"
    assert re.fullmatch(
        rf"error: {out}: can't be written \({os.strerror(errno.EFBIG)}: {size}\); expected a limit "
        r"that allows files of this size; raise ulimit -f; the same command starts again",
        line,
    ), line
    assert not list(tmp_path.iterdir())


def test_a_reader_that_leaves_is_no_error_message():
    command = f"{BIN / 'irv2'} --help | true; exit ${{PIPESTATUS[0]}}"
    done = run("bash", "-c", f"sleep 0.1; {command}")
    assert done.stderr == ""


def test_debug_gives_the_traceback_and_the_line(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/mine.txt").write_text("precious")
    arguments = ["data", "sample", "--out", tmp_path / "digits"]
    line = error_line(irv2(*arguments), 2)
    assert "is not empty; expected a new folder; pass another --out" in line
    done = irv2(*arguments, "--debug")
    assert done.returncode == 2
    assert "irv2.errors.DataError" in done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {line}"


WAITING = """
import sys, time
import click
from irv2.cli.program import Program

@click.command(cls=Program)
def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("saved", flush=True)

main()
"""


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, "error: stopped by Ctrl-C"),
        (signal.SIGTERM, 143, "error: stopped by SIGTERM"),
    ],
)
def test_a_signal_lets_a_program_save_and_exits_with_its_status(number, status, line):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WAITING], **pipes) as process:
        assert read_line(process.stdout) == "ready\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (status, "saved\n")
    assert stderr.split("\n")[-2] == line
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_data_set_leaves_nothing_half_written(tmp_path, number, status):
    source = tmp_path / "source"
    source.mkdir()
    count = 60_000
    files = {
        "images-idx3-ubyte": struct.pack(">IIII", 0x803, count, 28, 28) + bytes(count * 784),
        "labels-idx1-ubyte": struct.pack(">II", 0x801, count) + bytes(count),
    }
    for name, content in files.items():
        for prefix in ("train", "t10k"):
            (source / f"{prefix}-{name}.gz").write_bytes(gzip.compress(content, 1))
    command = [BIN / "irv2", "data", "fashion-mnist", "--source", source, "--out", tmp_path / "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*.tmp/train/*/00010.png")):
            assert time.monotonic() < deadline, "it never began to write"
            time.sleep(0.01)
        process.send_signal(number)
        stderr = process.stderr.read()
    assert process.returncode == status, stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("arguments", "missing", "line"),
    [
        (
            ["train", "--setting", "2", "--data", "data"],
            "torch",
            'irv2 train: package torch is not installed; pip install "irv2[train]"',
        ),
        (
            ["export", "checkpoint.pt", "--data", "data"],
            "torch",
            'irv2 export: package torch is not installed; pip install "irv2[convert]"',
        ),
        (
            ["eval", "checkpoint.pt", "--data", "data"],
            "torch",
            'irv2 eval: package torch is not installed; pip install "irv2[train]"',
        ),
        (
            ["data", "sample", "--out", "never"],
            "sklearn",
            "the built-in sample: scikit-learn is not installed; "
            'pip install "irv2[train]", or pass --data DIR',
        ),
    ],
)
def test_a_program_without_its_packages_names_the_extra(tmp_path, arguments, missing, line):
    program = (
        f"import sys; sys.modules['{missing}'] = None; from irv2.cli.main import main;"
        f"main({arguments!r}, prog_name='irv2')"
    )
    (tmp_path / "checkpoint.pt").write_bytes(b"never read")
    (tmp_path / "data").mkdir()
    assert error_line(run(sys.executable, "-c", program, cwd=tmp_path), 1) == line


def test_a_message_gives_what_was_wrong_seen_expected_and_the_way_out():
    error = Irv2Error("model.pt", "1001 classes\n  in it", "1000", "pass --labels")
    assert str(error) == "model.pt: 1001 classes in it; expected 1000; pass --labels"
    assert str(Irv2Error("port", "in use")) == "port: in use"
    assert "retry in 0.25 s" in str(Overloaded("queue", "full", 0.25))


def test_an_image_error_takes_a_name_and_keeps_its_reason():
    error = ImageError(ImageReason.EMPTY, "0 bytes", "an image file", "send one")
    named = error.about(Path("a.jpg"))
    assert str(named) == "a.jpg: 0 bytes; expected an image file; send one"
    assert named.reason is ImageReason.EMPTY
    assert str(error).startswith("image: ")


def test_every_error_has_one_of_the_contracts_statuses():
    def tree(kind: type[Irv2Error]) -> list[type[Irv2Error]]:
        return [kind, *(leaf for child in kind.__subclasses__() for leaf in tree(child))]

    kinds = tree(Irv2Error)
    assert {kind.exit_code for kind in kinds} == {1, 2, 3}
    assert [kind.__name__ for kind in kinds if kind.exit_code == 3] == ["ParityError"]
