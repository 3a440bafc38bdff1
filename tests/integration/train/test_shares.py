"""Evaluation by several processes: each image once, and bit for bit one process's answers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from project import ROOT
from tiny_checkpoint import CLASSES, make_checkpoint, write_images

from irv2.checkpoint import Checkpoint
from irv2.data.dataset import ImageFolder, open_split
from irv2.evaluate import classify_folder, classify_part, folder_for_rank
from irv2.runners.torch import TorchRunner

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "3",
]


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Fifty images, one of the first 32 and one of the others in two classes: once it is wrong."""
    root = write_images(tmp_path / "data")
    for one, other in (("blue", "cyan"), ("red", "yellow")):
        shutil.copy(root / "val" / one / "0.png", root / "val" / other / "copy.png")
    return open_split(root, "val", CLASSES)


@pytest.fixture
def checkpoint(folder: ImageFolder) -> Checkpoint:
    return make_checkpoint(folder.root.parent)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the three processes have; sums in another order are not the same bits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
def test_three_trainer_processes_count_fifty_images_once_each(folder, checkpoint, tmp_path):
    checkpoint.save(tmp_path / "best.pt")
    out = tmp_path / "counts.json"
    subprocess.run(
        [
            *TORCHRUN,
            ROOT / "tests/helpers/share_worker.py",
            tmp_path / "best.pt",
            folder.root.parent,
            out,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    [alone] = classify_folder([TorchRunner(checkpoint)], folder, checkpoint.preprocess)
    assert tuple(json.loads(out.read_text())) == alone.counts
    assert alone.counts[0] == 50


@pytest.mark.usefixtures("one_thread")
def test_shares_have_the_logits_of_one_process_bit_for_bit(folder, checkpoint):
    runner, config = TorchRunner(checkpoint), checkpoint.preprocess
    [alone] = classify_folder([runner], folder, config)
    shares = [folder_for_rank(folder, rank, 3) for rank in range(3)]
    parts = [classify_part([runner], share, config)[0] for share in shares]
    assert [len(part) for part in parts] == [32, 18, 0]
    assert [part.counts[1] > 0 for part in parts] == [True, True, False]  # each has some to count
    np.testing.assert_array_equal(np.concatenate([part.logits for part in parts]), alone.logits)
