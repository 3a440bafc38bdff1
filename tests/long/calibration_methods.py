"""What each way of estimating int8's ranges costs: answers changed, lost and gained, and seconds.

    python tests/long/calibration_methods.py CHECKPOINT [CHECKPOINT ...] --data DIR [--limit 3000]

Prints a table in Markdown, as in docs/gate.md. Each method's files are judged on the same images of
DIR/val; `chosen` is what an export would take, by the calibration images alone. No block stays in
float32.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from tabulate import tabulate

from irv2.checkpoint import Checkpoint
from irv2.convert.onnx.calibrate import CalibrationOptions, calibrate, choose_images
from irv2.convert.onnx.choose_method import choose_method
from irv2.convert.onnx.float32 import write_onnx
from irv2.convert.onnx.int8 import Target, quantize
from irv2.convert.onnx.ranges import METHODS
from irv2.convert.onnx.trial import load_images
from irv2.data.dataset import open_split
from irv2.evaluate import classify_folder
from irv2.ledger import Predictions
from irv2.runners.onnx import OnnxRunner

TARGETS: tuple[Target, ...] = ("cpu", "trt")
HEADER = ("network", "range", "chosen", "file", "changed", "lost", "gained", "seconds to try")


def main() -> None:
    """Judge every method on every checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=3000)
    args = parser.parse_args()
    rows = [row for path in args.checkpoints for row in judge(path, args.data, args.limit)]
    print(tabulate(rows, HEADER, tablefmt="github"))


def judge(path: Path, data: Path, limit: int) -> list[tuple[object, ...]]:
    """One row per method and file."""
    checkpoint = Checkpoint.load(path)
    val = open_split(data, "val", checkpoint.classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        float32 = folder / "model.onnx"
        write_onnx(checkpoint, "0" * 64, float32)
        model = onnx.load(float32)
        images = choose_images(val, CalibrationOptions())
        calibration = calibrate(float32, images, checkpoint.preprocess, seed=0)
        pixels = load_images(calibration, checkpoint.preprocess)
        chosen = choose_method(model, calibration, pixels)[0].method
        kinds = [(method, target) for method in METHODS for target in TARGETS]
        runners = [OnnxRunner(float32)]
        for method, target in kinds:
            file = folder / f"{method}.{target}.onnx"
            onnx.save(quantize(model, calibration.using(method).ranges, target), file)
            runners.append(OnnxRunner(file))
        before, *found = classify_folder(runners, val.first(limit), checkpoint.preprocess)
        seconds = []
        for runner in runners[1:]:
            started = time.perf_counter()
            classify_folder([runner], images, checkpoint.preprocess)
            seconds.append(time.perf_counter() - started)
    return [
        (path, method, "yes" if method == chosen else "", f"int8-{target}", *counts(before, now),
         round(spent, 1))
        for (method, target), now, spent in zip(kinds, found, seconds, strict=True)
    ]  # fmt: skip


def counts(before: Predictions, now: Predictions) -> tuple[int, int, int]:
    """Images that are answered otherwise, lost and gained."""
    old, new = before.logits.argmax(axis=1), now.logits.argmax(axis=1)
    was_right, is_right = old == before.labels, new == before.labels
    changes = (old != new, was_right & ~is_right, is_right & ~was_right)
    changed, lost, gained = (int(np.count_nonzero(change)) for change in changes)
    return changed, lost, gained


if __name__ == "__main__":
    main()
