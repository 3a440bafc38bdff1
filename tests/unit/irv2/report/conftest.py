"""A small made-up run, and a bundle whose classes have names that are markup."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny_bundle import passed_parity, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.data.dataset import open_split
from irv2.data.hashes import hash_files
from irv2.ledger import Ledger, Predictions
from irv2.manifest import REFERENCE, REPORT, Evidence
from irv2.system.files import file_sha256

CLASSES = ["<script>alert(1)", 'b" onload="x', "c&amp;"]
# The checkpoint is wrong on images 1 and 5, the latter by more; B loses 0, gains 5, and keeps 1.
CHECKPOINT = [[5, 1, 0], [0, 2, 0], [0, 3, 1], [0, 4, 0], [0, 0, 6], [9, 0, 1]]
ARTEFACT = [[1, 5, 0], [0, 2, 0], [0, 3, 1], [0, 4, 0], [0, 0, 6], [0, 0, 1]]
ROW = {
    **{"train_top1_error": 50.0, "train_top5_error": 9.0, "val_top5_error": 1.0},
    **{"train_loss": 1.5, "num_val_images": 6, "images_per_s": 12.5, "learning_rate": 0.045},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures of each class, all different."""
    for label, name in enumerate(CLASSES):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for i in range(2):
            pixels = np.full((20, 30, 3), 40 * (2 * label + i), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / f"<b>{i}.png")
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three epochs, of which the second has the lowest error."""
    folder = tmp_path / "<i>run"
    folder.mkdir()
    rows = [{"epoch": i, **ROW, "val_top1_error": e} for i, e in ((1, 40.0), (2, 33.0), (3, 34.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "recipe": {"setting": "2", "epochs": 3, "blocks": [1, 2, 1], "flip": True},
        "data": {"num_train": 60},
        "machine": {"command": "irv2-train <u>", "versions": {"torch": "2.13.0"}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "best.pt").write_bytes(b"weights")
    return folder


@pytest.fixture
def bundle(tmp_path: Path, data: Path, run: Path) -> Path:
    """Made of the run's best.pt; judged on two backends, with the same answers on both."""
    path = write_tiny_bundle(tmp_path / "b.bundle")
    folder = open_split(data, "val")
    hashes = tuple(hash_files(folder))
    opened = Bundle.open(path)
    [artifact] = opened.artifacts
    evidence = [
        Evidence(
            backend=backend,
            backend_version="1.0",
            instruction_set="amx",
            threads=2,
            parity=passed_parity(),
            invariance=None,
            images_per_s=rate,
        )
        for backend, rate in (("openvino-cpu", 321.5), ("onnxruntime-cpu", None))
    ]
    artifact = msgspec.structs.replace(artifact, evidence=evidence, parity=evidence[0].parity)
    logits = {REFERENCE: CHECKPOINT} | {artifact.ledger(row): ARTEFACT for row in evidence}
    for name, rows in logits.items():
        array = np.array(rows, np.float32)
        answers = Predictions(folder.files, hashes, folder.labels, array)
        (path / name).write_bytes(Ledger.from_predictions(answers).to_bytes())
    (path / REPORT).write_text("# Parity\n\n- model.onnx: <em>passed</em>\n")
    files = {name: file_sha256(path / name) for name in (*logits, REPORT)}
    source = msgspec.structs.replace(
        opened.manifest.source, checkpoint_sha256=file_sha256(run / "best.pt")
    )
    manifest = msgspec.structs.replace(
        opened.manifest, classes=CLASSES, files=opened.manifest.files | files, source=source
    )
    opened.with_manifest(manifest.with_artifacts([artifact]))
    return path
