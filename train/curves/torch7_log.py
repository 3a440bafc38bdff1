"""Parser of the original trainer's logs, so that old and new runs fit into one picture.

Source: fb.resnet.torch, train.lua. One line per step with that batch's errors, one per evaluated
batch, one per epoch:

     | Epoch: [1][7/20019]    Time 1.000  Data 0.001  Err 6.9000  top1  99.000  top5  95.000
     * Finished epoch # 1     top1:  81.000  top5:  59.000
"""

import re
from pathlib import Path

from irv2.errors import DataError

_NUMBER = r"(-?(?:\d+\.?\d*|nan|inf))"
_STEP = re.compile(rf"\| Epoch: \[(\d+)\]\[(\d+)/\d+\].* top1 +{_NUMBER} +top5 +{_NUMBER}")
_FINISHED = re.compile(rf"\* Finished epoch # (\d+) +top1: +{_NUMBER} +top5: +{_NUMBER}")


def read_torch7_log(path: Path) -> list[dict[str, float]]:
    """Read one row per finished epoch, with the keys of metrics.jsonl; errors in percent.

    Training errors are means over the epoch's steps, and nan if it logged none. After a restart
    an epoch's later lines count. Raises DataError for a damaged line.
    """
    rows: dict[int, dict[str, float]] = {}
    steps: list[tuple[float, float]] = []
    with path.open(errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if step := _STEP.match(text):
                if step[2] == "1":
                    steps = []
                steps.append((float(step[3]), float(step[4])))
            elif finished := _FINISHED.match(text):
                rows[int(finished[1])] = _row(finished, steps)
                steps = []
            elif text.startswith(("| Epoch: [", "* Finished epoch #")) and line.endswith("\n"):
                raise DataError(path, f"line {number} is damaged: {text[:60]!a}", "a Torch7 log")
    return [rows[epoch] for epoch in sorted(rows)]


def _row(finished: re.Match[str], steps: list[tuple[float, float]]) -> dict[str, float]:
    top1, top5 = zip(*steps, strict=True) if steps else ((float("nan"),), (float("nan"),))
    return {
        "epoch": int(finished[1]),
        "train_top1_error": sum(top1) / len(top1),
        "train_top5_error": sum(top5) / len(top5),
        "val_top1_error": float(finished[2]),
        "val_top5_error": float(finished[3]),
    }
