"""The published network, all 31.6 million parameters at 299 pixels, on real photographs."""

import json
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from process_output import read_line

from irv2.checkpoint import Checkpoint

CLASSES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's layout: a class per photograph of scikit-image, cut-outs of it as JPEG."""
    source = Path(find_spec("skimage").origin).parent / "data"
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        with Image.open(source / name) as photograph:
            picture = photograph.convert("RGB")
        for split, num in (("train", 3), ("val", 2)):
            folder = root / split / Path(name).stem
            folder.mkdir(parents=True)
            for i in range(num):
                width, height = picture.width * 4 // 5, picture.height * 4 // 5
                left = int(rng.integers(picture.width - width))
                top = int(rng.integers(picture.height - height))
                cut = picture.crop((left, top, left + width, top + height)).resize((500, 375))
                cut.save(folder / f"{i}.jpg", quality=90)
    return root


@pytest.mark.slow
def test_full_network_trains_exports_passes_the_gate_serves_and_classifies(
    photographs, tmp_path, environment
):
    def run(*command: str | Path) -> dict:
        result = subprocess.run(
            [str(word) for word in command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    out, bundle = tmp_path / "run", tmp_path / "run" / "best.bundle"
    run(
        "irv2-train",
        "--setting",
        "2",
        "--data",
        photographs,
        "--limit",
        "12",
        "--epochs",
        "1",
        "--workers",
        "1",
        "--out",
        out,
        "--json",
    )
    checkpoint = Checkpoint.load(out / "best.pt")
    assert (checkpoint.model.blocks, checkpoint.model.width) == ((5, 10, 5), 1.0)
    assert (checkpoint.preprocess.resize, checkpoint.preprocess.crop) == (328, 299)
    assert checkpoint.step == 1
    report = run(
        "irv2-export",
        out / "best.pt",
        "--data",
        photographs,
        "--precision",
        "fp32",
        "--max-batch",
        "4",
        "--accept-chance",  # after one step
        "--json",
    )
    [artifact] = report["artifacts"]
    assert (artifact["parity"]["verdict"], artifact["parity"]["n"]) == ("passed", 8)
    process = subprocess.Popen(
        ["irv2-serve", str(bundle), "--listen", "127.0.0.1:0", "--grace-s", "0"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ready = read_line(process.stderr)
        assert ready.startswith("ready "), ready + process.stderr.read()
        answer = run("irv2-classify", photographs / "val", "--server", ready.split()[1], "--json")
        served = run(
            "irv2", "verify", bundle, "--data", photographs, "--server", ready.split()[1], "--json"
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert [len(entry["scores"]) for entry in answer["results"]] == [4] * 8
    assert served["n"] == served["num_equal"] == served["num_checkpoint_top1"] == 8
