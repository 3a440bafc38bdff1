"""TF-slim's network through every program after the import, narrow and on 48 images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from tiny_checkpoint import CLASSES, PREPROCESS, fit_classifier, write_images

from irv2.checkpoint import Checkpoint
from irv2.cli.main import main
from irv2.convert.inspect.graph import layers, read_blocks
from irv2.data.dataset import open_split
from irv2.model.build import build
from irv2.model.paper import initialize
from irv2.network_config import SlimConfig

pytestmark = pytest.mark.slow

CONFIG = SlimConfig(num_classes=len(CLASSES), blocks=(1, 1, 2), width=0.125)


def irv2(*arguments: object) -> dict:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """slim.pt, data/train, data/val, and slim.bundle in three precisions."""
    root = tmp_path_factory.mktemp("slim")
    write_images(root / "other", seed=1)
    write_images(root / "data")
    (root / "other" / "val").rename(root / "data" / "train")
    torch.manual_seed(0)
    model = build(CONFIG).eval()
    initialize(model)
    fit_classifier(model, open_split(root / "data", "val", CLASSES))
    Checkpoint(
        model=CONFIG,
        state_dict=model.state_dict(),
        classes=CLASSES,
        setting="imported",
        epoch=0,
        preprocess=PREPROCESS,
        step=0,
    ).save(root / "slim.pt")
    irv2(
        "export",
        root / "slim.pt",
        "--data",
        root / "data",
        "--precision",
        "fp32,int8,fp16",
        "--tolerance-top1",
        20,
        "--tolerance-top5",
        20,
        "--max-batch",
        16,
    )
    return root


def test_every_precision_passes_the_gate_now_and_again(site):
    report = irv2("verify", site / "slim.bundle", "--data", site / "data")
    judged = {artifact["file"]: artifact["parity"]["verdict"] for artifact in report["artifacts"]}
    assert set(judged) == {
        "model.onnx",
        "model.fp16.onnx",
        "model.int8-cpu.onnx",
        "model.int8-trt.onnx",
    }
    assert set(judged.values()) == {"passed"}


def test_a_network_trained_here_keeps_its_preprocessing_and_passes_the_gate(site):
    """Begun with the checkpoint's weights, for half its classes, which it goes on to know."""
    data, out = site / "half", site / "run"
    for split in ("train", "val"):
        for name in CLASSES[::2]:
            shutil.copytree(site / "data" / split / name, data / split / name)
    begin = ("--init-from", site / "slim.pt", "--learning-rate", 1e-5)
    sizes = ("--epochs", 1, "--batch-size", 8, "--bn-group", 4, "--device", "cpu", "--workers", 0)
    trained = irv2("train", "--setting", 2, "--data", data, "--out", out, *begin, *sizes)
    checkpoint = Checkpoint.load(Path(trained["best"]))
    assert checkpoint.model == replace(CONFIG, num_classes=3)
    assert checkpoint.preprocess == PREPROCESS
    irv2("export", trained["best"], "--data", data, "--tolerance-top1", 50, "--max-batch", 2)
    bundle = json.loads((out / "best.bundle" / "bundle.json").read_text())
    assert bundle["source"]["arch"] == CONFIG.arch
    assert bundle["artifacts"][0]["parity"]["verdict"] == "passed"
    assert bundle["preprocess"]["sha256"] == PREPROCESS.sha256


def test_every_file_names_the_network(site):
    arch = "inception_resnet_v2_slim"
    inspected = irv2("inspect", site / "slim.bundle")
    assert (inspected["source"]["arch"], inspected["problems"]) == (arch, {})
    for path in (site / "slim.bundle").glob("*.onnx"):
        entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert entries["arch"] == arch


def test_the_picture_has_one_stem_and_a_head(site):
    found = irv2("graph", site / "slim.bundle", "-o", site / "graph.svg")["blocks"]
    assert [(block["title"], block["count"]) for block in found] == [
        ("Input", 1),
        ("Stem", 1),
        ("Inception-ResNet-A", 1),
        ("Reduction-A", 1),
        ("Inception-ResNet-B", 1),
        ("Reduction-B", 1),
        ("Inception-ResNet-C", 1),
        ("Inception-ResNet-C", 1),  # the last one ends without ReLU
        ("Head", 1),
        ("Classifier", 1),
    ]
    blocks = {block.title: block for block in read_blocks(site / "slim.bundle" / "model.onnx")}
    labels = {title: [x.label for x in layers(block.series)] for title, block in blocks.items()}
    assert labels["Head"] == ["1×1 conv 192"]
    assert labels["Classifier"] == ["average pool", "linear 6"]
    assert "3×3 average pool" in labels["Stem"]
    assert sum(" conv " in label for label in labels["Stem"]) == 12


def test_features_are_what_the_classifier_sees(site):
    out = site / "features.npz"
    written = irv2("features", site / "data" / "val", "--model", site / "slim.pt", "-o", out)
    assert (written["n"], written["num_features"]) == (48, CONFIG.channels(1536))
    found = np.load(out)
    classifier = Checkpoint.load(site / "slim.pt").build_model().classifier
    with torch.inference_mode():
        best = classifier(torch.from_numpy(found["features"])).argmax(1)
    assert [CLASSES[i] for i in best] == [Path(file).parent.name for file in found["files"]]


def test_the_checkpoint_and_its_artefacts_are_compared(site):
    bundle = site / "slim.bundle"
    assert irv2("eval", site / "slim.pt", "--data", site / "data")["top1_error"] == 0
    found = irv2("diff", f"{bundle}:reference", f"{bundle}:model.fp16.onnx")
    assert (found["n"], found["num_different"]) == (48, 0)
