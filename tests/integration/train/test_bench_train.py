"""`irv2 bench train` on a narrow network: it runs, and what it says hangs together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = ["--bn-group", "16", "--device", "cpu"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A cache of its own: another benchmark on this machine holds the user's lock."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def bench(environment: dict[str, str], *options: str) -> dict:
    command = [sys.executable, "-m", "irv2", "bench", "train", *SMALL, *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_both_precisions_are_compared_with_a_plain_loop_and_the_peak(environment, tmp_path):
    """Images to wait for are read again where there are fewer than a batch."""
    (tmp_path / "train" / "one").mkdir(parents=True)
    for i in range(3):
        pixels = np.full((80, 90, 3), 80 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / "one" / f"{i}.jpg")
    report = bench(
        environment,
        "--width",
        "0.1",
        "--image-size",
        "75",
        "--batch-size",
        "32",
        "--rounds",
        "2",
        "--seconds",
        "0.01",
        "--workers",
        "1",
        "--wait-steps",
        "2",
        "--data",
        str(tmp_path),
    )
    cases = report["cases"]
    assert list(cases) == ["plain fp32", "plain bf16", "ours fp32", "ours bf16"]
    for name, case in cases.items():
        peak = report["peak_gflop_per_s"][name.split()[1]]
        expected = 100 * case["images_per_s"] * report["gflop_per_image"] / peak
        # Rounded to tenths, and the few operations of so small a network to a tenth of them.
        assert case["percent_of_peak"] == pytest.approx(expected, rel=0.1, abs=0.1)
    assert report["ours_over_plain_bf16"]["ratio"] > 0
    wait = report["data_wait"]
    assert (wait["steps"], wait["data"]) == (2, str(tmp_path))
    assert 0 <= wait["percent"] <= 100


@pytest.mark.alone
@pytest.mark.slow
def test_activations_computed_again_take_less_memory(environment):
    report = bench(environment, "--width", "0.25", "--image-size", "150", "--memory")
    before, kept, computed_again = report["peak_mib"].values()
    assert before < computed_again < kept
    assert report["ratio_of_steps"] > 1.2
