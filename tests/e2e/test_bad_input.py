"""What people get wrong: each ends in one line, with the right exit status, and loses nothing."""

import json
import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_bundle import write_tiny_bundle

Fails = Callable[..., str]


@pytest.fixture
def fails(environment: dict[str, str]) -> Fails:
    """Run a program that must fail with `status`; returns its one error line."""

    def run(status: int, *command: str | Path) -> str:
        result = subprocess.run(
            [str(word) for word in command], env=environment, capture_output=True, text=True
        )
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        return line

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """train/ and val/ with two classes of two images each."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (80, 80), (40 * i, 0, 0)).save(root / split / label / f"{i}.png")
    return root


def train(data: Path, tmp_path: Path) -> list[str | Path]:
    return ["irv2-train", "--setting", "2", "--data", data, "--out", tmp_path / "run"]


def test_a_missing_data_folder(fails, tmp_path):
    assert "no such folder" in fails(2, *train(tmp_path / "nowhere", tmp_path))
    assert not (tmp_path / "run").exists()


def test_an_empty_class(fails, data, tmp_path):
    (data / "train" / "emu").mkdir()
    assert "emu: no images" in fails(2, *train(data, tmp_path))


def test_a_class_in_val_that_is_not_in_train(fails, data, tmp_path):
    shutil.copytree(data / "val" / "cat", data / "val" / "emu")
    assert "class emu is unknown" in fails(2, *train(data, tmp_path))


def test_text_files_named_jpg_are_counted_and_named(fails, data, tmp_path):
    (data / "train" / "cat" / "notes.jpg").write_text("not a picture")
    (data / "train" / "dog" / "notes.jpg").write_text("nor this")
    line = fails(2, *train(data, tmp_path))
    assert "2 files are no images: cat/notes.jpg, dog/notes.jpg" in line
    assert "--bad-images skip" in line


def test_a_checkpoint_of_another_program(fails, tmp_path):
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.pt")
    assert "schema missing" in fails(2, "irv2-export", tmp_path / "other.pt")


def test_half_a_checkpoint(fails, tmp_path):
    torch.save({"weights": torch.zeros(10_000)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    assert "half a checkpoint" in fails(2, "irv2-export", tmp_path / "half.pt")
    assert not (tmp_path / "half.bundle").exists()


@pytest.mark.parametrize("program", [["irv2-serve"], ["irv2", "verify"]])
def test_a_bundle_with_a_changed_byte(fails, tmp_path, program):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    model = bytearray((bundle / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(model)
    line = fails(2, *program, bundle)
    assert "model.onnx" in line
    assert "the file was changed" in line


def test_inspect_of_a_bundle_with_a_changed_byte_names_the_file(tmp_path, environment):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    with (bundle / "model.onnx").open("ab") as model:
        model.write(b"x")
    result = subprocess.run(
        ["irv2", "inspect", str(bundle), "--json"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "model.onnx" in result.stderr
    assert json.loads(result.stdout)


def test_a_port_in_use(fails, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = fails(1, "irv2-serve", bundle, "--listen", f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in line


def test_plaintext_beyond_this_machine_only_when_asked_for(fails, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    assert "--insecure" in fails(2, "irv2-serve", bundle, "--listen", "0.0.0.0:0")


def test_gpus_that_are_not_there_are_one_line(fails, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    serve = ("env", "CUDA_VISIBLE_DEVICES=", "irv2-serve", bundle, "--gpus")
    assert "--gpus: 0; expected 1 or more, or all" in fails(2, *serve, "0")
    assert "error: CUDA: " in fails(1, *serve, "all")
    assert "is for a CPU, asked for 2 GPUs" in fails(2, *serve, "2")


def test_streams_that_can_not_be_are_one_line(fails, tmp_path):
    serve = ("irv2-serve", write_tiny_bundle(tmp_path / "tiny.bundle"), "--streams")
    assert "--streams: 0; expected 1 to 1024, or auto" in fails(2, *serve, "0")
    assert "--streams: many; expected 1 to 1024, or auto" in fails(2, *serve, "many")
    assert "--streams: 2; expected 1 with --gpus 2" in fails(2, *serve, "2", "--gpus", "2")


def test_an_image_of_200_megapixels_is_refused_from_its_header(tmp_path, environment):
    huge = tmp_path / "huge.png"
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    huge.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    result = subprocess.run(
        ["irv2-classify", str(huge), "--bundle", str(bundle), "--json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    [entry] = json.loads(result.stdout)["results"]
    assert entry["error"]["reason"] == "TOO_MANY_PIXELS"
    assert "20000x10000" in entry["error"]["message"]


def test_classify_without_anyone_to_ask(fails, data):
    line = fails(2, "irv2-classify", data / "val")
    assert "--server HOST:PORT or --bundle DIR" in line


def test_a_batch_that_can_not_be_done_leaves_nothing(fails, data, tmp_path):
    bundle, out = write_tiny_bundle(tmp_path / "tiny.bundle"), tmp_path / "out.parquet"
    batch = ("irv2", "batch")
    assert "no image files in it" in fails(2, *batch, bundle, out, "--bundle", bundle)
    assert "no list of files for" in fails(2, *batch, data, out, "--bundle", bundle, "--as-listed")
    assert "nowhere: no bundle.json in it" in fails(2, *batch, data, out, "--bundle", "nowhere")
    assert "no such folder" in fails(2, *batch, data, "nowhere/out.parquet", "--bundle", bundle)
    (tmp_path / "mine.parquet").write_text("mine")
    line = fails(2, *batch, data, tmp_path / "mine.parquet", "--bundle", bundle)
    assert "mine.parquet: can't be read" in line
    assert (tmp_path / "mine.parquet").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"data", "tiny.bundle", "mine.parquet"}
