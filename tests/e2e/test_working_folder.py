"""Nothing in the user's working folder is imported, whatever its files are called."""

import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT

from irv2.cli.main import PROGRAMS

BIN = Path(sys.executable).parent
# Stages, folders of the project, and libraries that programs import at once or later.
NAMES = (
    "signal",
    "train",
    "convert",
    "serve",
    "protos",
    "tests",
    "click",
    "numpy",
    "msgspec",
    "torch",
    "cv2",
)
START = {
    "script": [BIN / "irv2"],
    "module": [sys.executable, "-m", "irv2"],
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc-per-node", "1", "-m", "irv2"],
}


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A folder with modules and packages of the user's that say so when they are imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user {name} was imported')\n")
    (tmp_path / "convert").mkdir()
    (tmp_path / "convert" / "__init__.py").write_text("raise SystemExit('the user convert')\n")
    return tmp_path


@pytest.mark.parametrize(("way", "python_path"), [("script", "."), ("module", "")])
def test_every_program_is_ours(way, python_path, crowded, environment):
    for name in PROGRAMS:
        done = subprocess.run(
            [*START[way], name, "--help"],
            cwd=crowded,
            env=environment | {"PYTHONPATH": python_path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert done.stdout.startswith(f"Usage: irv2 {name} ")


@pytest.mark.parametrize("way", START)
def test_a_training_is_ours(way, crowded, environment):
    command = [*START[way], "train", "--setting", "2", "--show-model"]
    done = subprocess.run(command, cwd=crowded, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "blocks_a x5" in done.stdout


def test_a_program_of_the_project_runs_from_its_own_folder(environment):
    """There the working folder is where the package lies, and has to stay on the path."""
    command = [sys.executable, "-m", "irv2", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("irv2, version ")
