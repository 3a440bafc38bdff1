"""When two training runs are the same: bit for bit, but for the times they took."""

import json
from pathlib import Path

import torch

from irv2.checkpoint import Checkpoint


def assert_same_run(out: Path, other: Path) -> None:
    """Equal weights in last.pt and best.pt, and equal metrics but for `images_per_s`."""
    for name in ("last.pt", "best.pt"):
        mine, theirs = Checkpoint.load(out / name), Checkpoint.load(other / name)
        assert mine.step == theirs.step
        assert mine.state_dict.keys() == theirs.state_dict.keys()
        for key, value in theirs.state_dict.items():
            assert torch.equal(mine.state_dict[key], value), f"{name}: {key}"
    rows = [
        [{**json.loads(line), "images_per_s": 0} for line in path.read_text().splitlines()]
        for path in (out / "metrics.jsonl", other / "metrics.jsonl")
    ]
    assert rows[0] == rows[1]
