"""The installed programs, and a network that they trained and exported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def environment(cache_dir: Path) -> dict[str, str]:
    """The programs on the path, as after `source .venv/bin/activate`."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A working folder with runs/setting-2, as the README says but trained half as long."""
    folder = tmp_path_factory.mktemp("project")
    train = ["irv2-train", "--setting", "2", "--epochs", "8"]
    with (folder / "train.log").open("w") as log:
        subprocess.run(train, cwd=folder, env=environment, stderr=log, check=True)
    return folder


@pytest.fixture(scope="session")
def bundle(project: Path, environment: dict[str, str]) -> Path:
    """The bundle of that run, float32 alone so that answers can be exact; not to be changed."""
    best = project / "runs" / "setting-2" / "best.pt"
    out = project / "exported.bundle"
    subprocess.run(
        ["irv2-export", str(best), "--precision", "fp32", "--out", str(out)],
        cwd=project,
        env=environment,
        check=True,
    )
    return out
