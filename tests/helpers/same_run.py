"""When two training runs are the same: bit for bit, but for the times they took."""

import json
from pathlib import Path

import torch

from irv2.checkpoint import Checkpoint


def assert_same_run(out: Path, other: Path, *, from_same_file: bool = True) -> None:
    """Equal last.pt to the last bit, equal weights in the best ones, and equal metrics.

    Runs begun from files that differ in times alone record other hashes of them in last.pt.
    """
    for name in ("last.pt", "best.pt", "best-ema.pt"):
        assert (out / name).exists() == (other / name).exists()
        if not (out / name).exists():
            continue
        mine, theirs = Checkpoint.load(out / name), Checkpoint.load(other / name)
        assert mine.step == theirs.step
        assert mine.state_dict.keys() == theirs.state_dict.keys()
        for key, value in theirs.state_dict.items():
            assert torch.equal(mine.state_dict[key], value), f"{name}: {key}"
    if from_same_file:
        assert content_hash(out / "last.pt") == content_hash(other / "last.pt")
    assert rows(out) == rows(other)


def content_hash(path: Path) -> str:
    """Over all that a checkpoint holds: optimiser, averages and position too."""
    content: str = torch.load(path, weights_only=True)["sha256"]
    return content


def rows(run: Path) -> list[dict[str, float]]:
    """Its metrics but for the times."""
    times = {"images_per_s": 0, "data_wait_percent": 0}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), **times} for line in lines]
