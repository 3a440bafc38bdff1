"""What all tests share: no setting of the user's leaks in, one sample folder, one tiny bundle."""

import os
import signal
from pathlib import Path

import pytest

from irv2.bundle import Bundle
from irv2.data.samples import sample_folder

# Before torch is imported, here and in the processes that tests start: two tests share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Shells start jobs in the background with Ctrl-C ignored, and nohup those with SIGHUP, which the
# processes of tests inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's cache for this test run, also of the processes that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ.pop("IRV2_DATA", None)
    return folder


@pytest.fixture(scope="session")
def sample(cache_dir: Path) -> Path:
    """The built-in sample, written once per session."""
    return sample_folder()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny bundle, not to be changed."""
    from tiny_bundle import write_tiny_bundle  # imports onnx, which few tests need

    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle"))
