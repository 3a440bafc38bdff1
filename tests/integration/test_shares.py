"""Evaluation by several processes: each image once, and bit for bit one process's answers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import CLASSES, COLOURS, make_checkpoint, write_images

from irv2.dataset import open_split
from irv2.evaluate import classify_folder
from irv2.runners.torch import TorchRunner

WORKER = Path(__file__).parents[1] / "share_worker.py"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Fifty images, some of them of another class than their folder says."""
    root = write_images(tmp_path / "data")
    for i, colour in enumerate(COLOURS[:2]):
        pixels = np.full((90, 100, 3), 200 * np.array(colour), np.uint8)
        Image.fromarray(pixels).save(root / "val" / CLASSES[i + 1] / "other.png")
    return root


def test_three_processes_count_fifty_images_once_each(data, tmp_path):
    checkpoint = make_checkpoint(data)
    checkpoint.save(tmp_path / "best.pt")
    out = tmp_path / "merged.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, tmp_path / "best.pt", data, str(rank), "3", out],
            env=environment,
        )
        for rank in range(3)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    merged = np.load(out)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the three; sums in another order are not the same bits
    try:
        folder = open_split(data, "val", CLASSES)
        [alone] = classify_folder([TorchRunner(checkpoint)], folder, checkpoint.preprocess)
    finally:
        torch.set_num_threads(num_threads)
    assert merged["sizes"].tolist() == [32, 18, 0]
    assert tuple(merged["files"]) == alone.files == folder.files
    assert len(alone) == 50
    np.testing.assert_array_equal(merged["logits"], alone.logits)
    np.testing.assert_array_equal(merged["labels"], alone.labels)
