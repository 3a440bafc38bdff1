"""`irv2 import hf:...` as a real process, from a hub on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hub_endpoint import COMMIT, HubEndpoint, hub_endpoint, repository_files

from irv2.checkpoint import Checkpoint
from irv2.system.files import file_sha256

NAME = "ants/tiny.in3"
Import = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return repository_files()


@pytest.fixture
def hub(files) -> Iterator[HubEndpoint]:
    with hub_endpoint(NAME, dict(files)) as server:
        yield server


@pytest.fixture
def irv2_import(hub, tmp_path) -> Import:
    """Runs `irv2 import NAME -o tmp_path/a.pt`, with a cache of its own; variables by keyword."""

    def run(name: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-m", "irv2", "import", name, "-o", str(tmp_path / "a.pt"), *options],
            env={**mine, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), **variables},
            capture_output=True,
            text=True,
        )

    return run


def error_line(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    assert done.stderr.startswith("error: hf:")
    assert done.stderr.count("\n") == 1
    return done.stderr.rstrip()


def test_a_repository_becomes_a_checkpoint_that_knows_it(hub, irv2_import, tmp_path):
    done = irv2_import(f"hf:{NAME}", HF_TOKEN="hf_secret")
    assert (done.returncode, done.stderr) == (0, "")
    place = f"{hub.url}/{NAME}, revision {COMMIT}, licence apache-2.0"
    assert done.stdout.splitlines()[1] == f"  fetched  {place}"
    checkpoint = Checkpoint.load(tmp_path / "a.pt")
    assert checkpoint.classes == ["ant", "bee", "cat"]
    assert (checkpoint.preprocess.resize, checkpoint.preprocess.crop) == (100, 75)
    imported = checkpoint.source("0" * 64).imported
    assert (imported.hub, imported.repository, imported.revision, imported.license) == (
        hub.url,
        NAME,
        COMMIT,
        "apache-2.0",
    )
    weights = next((tmp_path / "cache").rglob("model.safetensors"))
    assert (imported.file, imported.sha256) == ("model.safetensors", file_sha256(weights))
    # Nothing else was asked for, and nothing told but what the library is.
    assert {path.split("/")[-1] for _, path, _ in hub.asked} == {
        *("tiny.in3", COMMIT, "README.md", "config.json", "model.safetensors")
    }
    for _, path, headers in hub.asked:
        agent = {name.lower(): value for name, value in headers.items()}
        assert agent["user-agent"].startswith("irv2/")
        assert "torch" not in agent["user-agent"]
        # The token is for the hub, not for the host that stores the file.
        assert agent.get("authorization") == (
            None if path.startswith("/stored") else "Bearer hf_secret"
        )


@pytest.mark.slow
def test_a_pinned_revision_is_asked_for_once_and_any_is_found_offline(hub, irv2_import, tmp_path):
    assert irv2_import(f"hf:{NAME}@{COMMIT}", "--json").returncode == 0
    first = (tmp_path / "a.pt").read_bytes()
    hub.asked.clear()
    done = irv2_import(f"hf:{NAME}@{COMMIT}", "--json")
    assert json.loads(done.stdout)["origin"]["revision"] == COMMIT
    assert hub.asked == []
    assert (tmp_path / "a.pt").read_bytes() == first
    line = error_line(irv2_import(f"hf:{NAME}", HF_HUB_OFFLINE="1"), 1)  # main was never asked for
    assert "offline mode" in line
    assert irv2_import(f"hf:{NAME}").returncode == 0
    hub.asked.clear()
    done = irv2_import(f"hf:{NAME}", HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    assert "Using cached commit hash" in done.stderr
    assert hub.asked == []


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(hub, irv2_import):
    hub.files["model.safetensors"] = bytes(12_000_000)  # the library writes 10 MiB at a time
    hub.cut_after = 11_000_000
    done = irv2_import(f"hf:{NAME}")
    assert "Trying to resume download" in done.stderr
    assert "model.safetensors: an unknown format (12000000 bytes)" in done.stderr
    ranges = [headers.get("Range") for _, path, headers in hub.asked if path.startswith("/stored")]
    assert ranges == [None, f"bytes={10 << 20}-"]


def test_a_damaged_file_is_refused_and_does_not_stay_in_the_cache(hub, irv2_import, tmp_path):
    hub.damages = True
    line = error_line(irv2_import(f"hf:{NAME}"), 1)
    assert "model.safetensors came, or was kept, damaged (sha256 " in line
    assert not (tmp_path / "a.pt").exists()
    assert irv2_import(f"hf:{NAME}").returncode == 0


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_one_line(hub, irv2_import):
    line = error_line(irv2_import("hf:ants/none"), 2)
    assert f"no such repository at {hub.url}, or a private one; a private one needs a token" in line
    line = error_line(irv2_import(f"hf:{NAME}@v9"), 2)
    assert line.endswith(f"no revision v9; expected a branch, tag or commit of {hub.url}/{NAME}")
    line = error_line(irv2_import(f"hf:{NAME}/other.pth"), 2)
    assert "has no file other.pth; expected one of model.safetensors, pytorch_model.bin" in line


@pytest.mark.parametrize("variables", [{}, {"HF_TOKEN": "hf_of_a_stranger"}])
def test_a_gated_repository_says_where_to_ask(hub, irv2_import, variables):
    hub.is_gated = True
    line = error_line(irv2_import(f"hf:{NAME}", **variables), 2)
    assert f"agree to its terms at {hub.url}/{NAME} and give a token: hf auth login" in line


def test_without_a_connection_the_line_says_which_file_to_bring(files, irv2_import, tmp_path):
    gone = "http://127.0.0.1:9"  # nobody listens at the discard port
    line = error_line(irv2_import(f"hf:{NAME}", HF_ENDPOINT=gone), 1)
    page = f"{gone}/{NAME}/resolve/main/model.safetensors"
    assert f"expected a connection to {gone}; or bring {page} and the config.json" in line
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(files[name])
    command = line.partition("then: irv2 import ")[2].split()
    assert command == ["model.safetensors", "-o", str(tmp_path / "a.pt")]
    assert irv2_import(str(tmp_path / command[0])).returncode == 0


def test_a_card_that_states_nothing_readable_leaves_the_licence_unknown(hub, irv2_import):
    hub.files["README.md"] = b"---\nlicense: [\n---\n"
    done = irv2_import(f"hf:{NAME}")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "the licence is not known" in done.stderr
    assert done.stdout.splitlines()[1].endswith("licence not stated")
