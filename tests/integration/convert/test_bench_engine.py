"""`irv2 bench engine` on a small bundle: it runs, and what it says hangs together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from irv2.convert.bench.engine import FP32, export_in_folder, flop_per_image

OPENVINO = "model.onnx on openvino-cpu"


@pytest.mark.slow
def test_bench_engine_compares_a_bundles_files_with_the_machines_limit(exported, tmp_path):
    options = ["--rounds", "2", "--seconds", "0.01", "--batch-size", "2", "--json"]
    command = [sys.executable, "-m", "irv2", "bench", "engine", str(exported.bundle), *options]
    # A cache of its own: another benchmark on this machine holds the user's lock.
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rates = result["images_per_s"]
    engines = {"model.onnx on onnxruntime-cpu", "model.onnx on openvino-cpu"}
    peaks = {name for name in rates if name.endswith(" convolutions")}
    assert rates.keys() == engines | peaks
    assert {f"{name} convolutions" for name in ("onnxruntime fp32", "openvino int8")} <= peaks
    assert min(rates.values()) > 0
    assert result["alone_ms"].keys() == engines == result["opened"].keys()
    of_peak = max((name for name in peaks if " fp32 " in name), key=rates.__getitem__)
    assert result["ratios"].keys() == {
        f"{OPENVINO} / {FP32}", f"{OPENVINO} / {of_peak}", f"{FP32} / {of_peak}"
    }  # fmt: skip
    for ratio in result["ratios"].values():
        assert ratio["lower_95"] <= ratio["ratio"] <= ratio["upper_95"]
    assert result["export"] is None
    [name] = [bar["what"] for bar in result["bars"] if bar["measured"] is not None]
    assert name == f"{FP32} / {of_peak}"


@pytest.mark.slow
def test_an_export_is_timed_without_what_the_users_cache_knows(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))  # put back after the test
    shutil.copy(exported.checkpoint_path, tmp_path / "random.pt")
    for split, file in (("train", "0.png"), ("val", "1.png")):
        folder = tmp_path / "data" / split / "all"
        folder.mkdir(parents=True)
        for path in exported.data.glob(f"val/*/{file}"):
            shutil.copy(path, folder / f"{path.parent.name}.png")
    artifacts, cost = export_in_folder(tmp_path)
    assert cost.seconds > 0
    assert len(artifacts) == 4
    assert list((tmp_path / "cache" / "irv2" / "calibration").iterdir())
    assert not (tmp_path / "user").exists()


def test_operations_are_counted_as_published(tmp_path: Path):
    """A 3x3 convolution of 3 to 8 channels on 10x10: 100 places, 216 weights, twice."""
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    make = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node, onnx.helper.make_node("Relu", ["y"], ["z"])], "one",
        [make("x", 1, ["N", 3, 10, 10])], [make("z", 1, ["N", 8, 10, 10])],
        [onnx.helper.make_tensor("w", 1, (8, 3, 3, 3), [0.0] * 216)],
        value_info=[make("y", 1, ["N", 8, 10, 10])],
    )  # fmt: skip
    assert flop_per_image(onnx.helper.make_model(graph)) == pytest.approx(2 * 216 * 100)
