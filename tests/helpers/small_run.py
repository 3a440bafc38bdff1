"""A training run of a tiny network, which takes seconds."""

import subprocess
import time
from pathlib import Path

SMALL = (
    *("--setting", "2", "--width", "0.1", "--blocks", "1", "1", "1", "--image-size", "75"),
    *("--batch-size", "8", "--bn-group", "4", "--device", "cpu"),
)


def wait_for(checkpoint_path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has written its checkpoint."""
    until = time.monotonic() + 120
    while not checkpoint_path.exists():
        assert process.poll() is None, "ended before its first checkpoint"
        assert time.monotonic() < until
        time.sleep(0.02)
