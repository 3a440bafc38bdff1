"""The built wheel in an environment of its own: a server without torch, from another folder."""

import os
import signal
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from process_output import read_line
from project import ROOT
from serving_process import get
from tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a virtual environment with the wheel and what the image `serve` has."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    [wheel] = folder.glob("irv2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top_level = {name.partition("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"irv2"}
    data = {"data/imagenet_classes.txt", "doctor/mean_colour.onnx", "report/style.css"}
    assert {f"irv2/{name}" for name in data} <= names
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    lock = ROOT / "requirements" / "serve.lock"
    subprocess.run([*install, "--require-hashes", "-r", lock], check=True)
    subprocess.run([*install, "--no-deps", wheel], check=True)
    return python.parent


@pytest.mark.timeout(600)
def test_server_and_classify_run_from_the_wheel_where_torch_is_not_installed(installed, tmp_path):
    for absent in ("torch", "scipy", "train", "convert", "serve"):
        command = [installed / "python", "-c", f"import {absent}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True)
        assert done.returncode == 1, absent
    for folder in ("train", "serve", "convert", "irv2"):  # names that a user's folder may have too
        (tmp_path / folder).mkdir()
    for module in ("train", "serve", "click", "numpy"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('the user module was imported')")
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle")
    image = tmp_path / "photo.jpg"
    Image.radial_gradient("L").convert("RGB").save(image)
    process = subprocess.Popen(
        [
            *(installed / "irv2-serve", bundle, "--listen", "127.0.0.1:0"),
            *("--http", "127.0.0.1:0", "--grace-s", "0"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": "."},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = read_line(process.stderr)
        assert ready.startswith("ready "), ready + process.stderr.read()
        command = [installed / "irv2-classify", image, "--server", ready.split()[1]]
        answer = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        assert "class " in answer
        assert "<h1" in get(ready.rstrip().rpartition("http=")[2], "/")[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "extra"), [(["train", "--setting", "2"], "train"), (["verify", "."], "verify")]
)
def test_a_program_whose_extra_is_missing_names_it(installed, tmp_path, arguments, extra):
    result = subprocess.run(
        [installed / "irv2", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert f"irv2[{extra}]" in line
