"""Published weights through the programs, from the file to a served answer.

The files are full-size, in the published layouts, with random weights; that their logits are right
is tested in tests/integration/convert/test_importing.py.
"""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from measured_import import run_import
from original_network import Tree
from PIL import Image
from process_output import read_line
from slim_network import SlimNetwork
from torch7_writer import save

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.client import Client
from irv2.convert.importing.slim import FIRST_TENSOR
from irv2.data.imagenet import class_names
from irv2.images.preprocess import preprocess
from irv2.network_config import NETWORKS
from irv2.runners.torch import TorchRunner

SYNSETS = ("n01440764", "n02123045", "n07753592")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Half a gigabyte of files, gone with the module."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def slim() -> dict[str, torch.Tensor]:
    """TF-slim's 1001 classes under Cadene's names."""
    network = SlimNetwork(last="last_linear", num_classes=1001)
    network.logits(torch.zeros(1, 3, 75, 75))  # makes the tensors
    return network.tensors


@pytest.fixture(scope="module")
def cadene(slim, folder) -> Path:
    torch.save(slim, folder / "cadene.pth")
    return folder / "cadene.pth"


@pytest.fixture(scope="module")
def original(folder) -> Path:
    return save(folder / "original.t7", Tree().network)


def test_an_import_says_what_it_did_in_the_memory_it_may_take(cadene, slim, folder):
    done = run_import(cadene, "-o", folder / "imported.pt", "--json")
    summary = json.loads(done.stdout)
    assert (summary["kind"], summary["arch"]) == ("Cadene weights", "inception_resnet_v2_slim")
    assert (summary["num_classes"], summary["background_dropped"]) == (1000, True)
    assert (summary["num_matched"], summary["num_parameters"]) == (1102, 55_843_464)
    assert done.peak_bytes < 2.5 * cadene.stat().st_size
    checkpoint = Checkpoint.load(folder / "imported.pt")
    assert checkpoint.classes == class_names()
    assert checkpoint.recipe["imported"]["file"] == "cadene.pth"
    assert torch.equal(checkpoint.state_dict["classifier.bias"], slim["last_linear.bias"][1:])
    assert torch.equal(checkpoint.state_dict["classifier.weight"], slim["last_linear.weight"][1:])


def test_all_classes_are_kept_under_names_of_ones_own(cadene, slim, folder, environment):
    names = [f"class {i}" for i in range(1001)]
    (folder / "names.txt").write_text("\n".join(names))
    out = folder / "background.pt"
    done = subprocess.run(
        [
            "irv2",
            "import",
            cadene,
            "-o",
            out,
            "--keep-background",
            "--classes",
            folder / "names.txt",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{cadene}: Cadene weights, network inception_resnet_v2_slim",
        "  matched  1102 tensors, none missing, none left over; 55,845,001 parameters",
        "  classes  1001, named by names.txt",
        "  images   shorter side 333, centre 299, pillow-bicubic, orientation stored, "
        "mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        "  said by  resize, crop, resampling, mean, std: the published network's",
        "  checked  nothing but names and shapes; --compare FILE.npz compares its answers too",
        f"written {out}",
    ]
    checkpoint = Checkpoint.load(out)
    assert checkpoint.classes == names
    assert torch.equal(checkpoint.state_dict["classifier.bias"], slim["last_linear.bias"])


def test_debug_lists_every_tensor_that_is_missing(tmp_path, environment):
    torch.save({FIRST_TENSOR: torch.ones(32, 3, 3, 3)}, tmp_path / "a.pth")
    done = subprocess.run(
        ["irv2", "import", tmp_path / "a.pth", "-o", tmp_path / "a.pt", "--debug"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    listed = [line for line in done.stderr.splitlines() if "DEBUG missing: " in line]
    assert len(listed) == 1101
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: {tmp_path / 'a.pth'}: timm weights, but of its tensors are 1101"
    )
    assert "and 1095 more; " in last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "arch"),
    [("cadene", "inception_resnet_v2_slim"), ("original", "inception_resnet_v2")],
)
def test_published_weights_are_imported_evaluated_exported_served_and_asked(
    source, arch, request, tmp_path, environment
):
    def run(*command: object) -> dict:
        done = subprocess.run(
            [*map(str, command), "--json"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    data, bundle = write_images(tmp_path / "data"), tmp_path / "imported.bundle"
    path = request.getfixturevalue(source)
    assert run("irv2", "import", path, "-o", "imported.pt")["arch"] == arch
    checkpoint = Checkpoint.load(tmp_path / "imported.pt")
    assert checkpoint.model == NETWORKS[arch]()
    assert run("irv2", "eval", "imported.pt", "--data", data)["n"] == 3
    options = ("--precision", "fp32", "--max-batch", 4, "--accept-chance")
    report = run("irv2-export", "imported.pt", "--data", data, *options)
    assert [artifact["parity"]["verdict"] for artifact in report["artifacts"]] == ["passed"]
    metadata = onnx.load(bundle / "model.onnx").metadata_props
    assert {entry.key: entry.value for entry in metadata}["arch"] == arch
    assert Bundle.open(bundle).manifest.source.arch == arch
    process = subprocess.Popen(
        ["irv2-serve", bundle, "--listen", "127.0.0.1:0", "--grace-s", "0", "--max-batch", "1"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = read_line(process.stderr)
        assert ready.startswith("ready "), ready + process.stderr.read()
        address = ready.split()[1]
        with Client(address) as client:
            model = client.model()
        answers = run("irv2-classify", data / "val", "--server", address)["results"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert (model.arch, list(model.classes)) == (arch, class_names())
    assert json.loads(model.preprocess_json) == checkpoint.preprocess.to_json()
    labels = [answer["scores"][0]["label"] for answer in answers]
    files = sorted(data.glob("val/*/*"))
    images = np.stack([preprocess(file.read_bytes(), checkpoint.preprocess) for file in files])
    best = TorchRunner(checkpoint).run(images).argmax(axis=1)
    assert labels == [class_names()[i] for i in best]


def write_images(root: Path) -> Path:
    """Three classes of one picture each, in folders as ImageNet has them."""
    rng = np.random.default_rng(0)
    for synset in SYNSETS:
        (root / "val" / synset).mkdir(parents=True)
        coarse = rng.integers(0, 256, (8, 10, 3)).repeat(45, 0).repeat(45, 1).astype(np.uint8)
        Image.fromarray(coarse).save(root / "val" / synset / "0.png")
    return root
