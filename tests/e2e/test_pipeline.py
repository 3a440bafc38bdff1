"""The whole line on the built-in sample: train, export, verify, serve, classify."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_output import read_line

from irv2.checkpoint import Checkpoint, load_model
from irv2.data.dataset import open_split
from irv2.evaluate import classify_folder
from irv2.results import top_k_scores
from irv2.runners.torch import TorchRunner


def run_json(environment: dict[str, str], *command: str) -> dict:
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def server(bundle: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a running irv2-serve."""
    process = subprocess.Popen(
        ["irv2-serve", str(bundle), "--listen", "127.0.0.1:0", "--grace-s", "0"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready = read_line(process.stderr)
    assert ready.startswith("ready "), ready + process.stderr.read()
    yield ready.split()[1]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_training_on_the_sample_learns_to_read_digits(project):
    best = Checkpoint.load(project / "runs" / "setting-2" / "best.pt")
    # 3.6 % was seen; 90 % are wrong by guessing.
    assert best.metrics["val_top1_error"] <= 8
    assert best.metrics["num_val_images"] == 360


def test_a_training_without_data_says_once_what_it_takes(project):
    assert (project / "train.log").read_text().count("data: the built-in sample") == 1


def test_the_checkpoint_is_the_small_network_of_the_same_blocks(project):
    model = load_model(project / "runs" / "setting-2" / "best.pt")
    assert (model.config.width, model.config.blocks) == (0.25, (1, 2, 1))


def test_eval_of_checkpoint_and_bundle_agree_exactly(project, bundle, environment):
    best = str(project / "runs" / "setting-2" / "best.pt")
    checkpoint = run_json(environment, "irv2", "eval", best, "--json")
    served = run_json(environment, "irv2", "eval", str(bundle), "--json")
    assert checkpoint["n"] == served["n"] == 360
    assert checkpoint["top1_error"] == served["top1_error"]
    assert checkpoint["top5_error"] == served["top5_error"]


def test_the_gate_passed_as_identical_and_says_what_360_images_can_show(bundle):
    manifest = json.loads((bundle / "bundle.json").read_text())
    [artifact] = manifest["artifacts"]
    assert (artifact["file"], artifact["precision"]) == ("model.onnx", "fp32")
    assert (artifact["parity"]["verdict"], artifact["parity"]["basis"]) == ("passed", "identical")
    assert "360 images can't show a loss below 0.83 points" in (bundle / "parity.md").read_text()


def test_every_served_answer_is_the_bundles_and_the_checkpoints(
    project, bundle, server, environment, sample, capsys
):
    val = str(sample / "val")
    served = run_json(environment, "irv2-classify", val, "--server", server, "--json")
    local = run_json(environment, "irv2-classify", val, "--bundle", str(bundle), "--json")
    checkpoint = Checkpoint.load(project / "runs" / "setting-2" / "best.pt")
    folder = open_split(sample, "val", checkpoint.classes)
    runner = TorchRunner(checkpoint)
    [ledger] = classify_folder([runner], folder, checkpoint.preprocess)
    own = [top_k_scores(row, checkpoint.classes, 5) for row in ledger.logits]
    files = [str(folder.path(i)) for i in range(len(folder))]
    assert [entry["file"] for entry in served["results"]] == files
    num_bundle = num_checkpoint = 0
    for mine, theirs, reference in zip(served["results"], local["results"], own, strict=True):
        num_bundle += is_same(scores(mine), scores(theirs))
        num_checkpoint += is_same(
            scores(mine), {score.label: score.probability for score in reference}
        )
    with capsys.disabled():
        print(
            f"\nserved answers: {num_bundle} of 360 equal the bundle's, "
            f"{num_checkpoint} of 360 the checkpoint's"
        )
    assert (num_bundle, num_checkpoint) == (360, 360)


def scores(entry: dict) -> dict[str, float]:
    return {score["label"]: score["probability"] for score in entry["scores"]}


def is_same(mine: dict[str, float], theirs: dict[str, float]) -> bool:
    return mine.keys() == theirs.keys() and all(
        abs(mine[label] - theirs[label]) <= 1e-5 for label in mine
    )


def test_verify_through_the_socket_counts_every_image(bundle, server, environment):
    report = run_json(environment, "irv2", "verify", str(bundle), "--server", server, "--json")
    assert report["n"] == report["num_equal"] == report["num_checkpoint_top1"] == 360


def test_verify_notices_a_server_of_another_model(server, tmp_path, environment, bundle):
    from tiny_bundle import write_tiny_bundle

    other = write_tiny_bundle(tmp_path / "other.bundle")
    (other / "reference.npz").write_bytes((bundle / "reference.npz").read_bytes())
    result = subprocess.run(
        ["irv2", "verify", str(other), "--server", server],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "error:" in result.stderr


def test_verify_here_passes_without_torch_and_without_the_checkpoint(bundle, environment):
    program = (
        "import sys; sys.modules['torch'] = None; "
        "from irv2.cli.main import main; main.main(['verify', sys.argv[1]], prog_name='irv2')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(bundle)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "identical on all 360 images" in result.stdout
