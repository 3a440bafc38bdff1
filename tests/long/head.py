"""How fast a head trains: the feature pass beside its engine alone, and the epochs after it.

    python tests/long/head.py CHECKPOINT PHOTOS [--images 1000]

PHOTOS is a folder of class folders, whose pictures are repeated up to `--images` (half of them of
class A, half of B, as links; a tenth as many for validation). Prints a line of JSON: images/s of
the engine on batches in memory, of the feature pass, their ratio (the bar: 0.9), and the seconds
of 30 epochs after it (the bar: 10). The engine is timed before the pass and after it, since other
work on the machine changes both. About an hour for 1,000 images of the full network on 2 cores.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from irv2.checkpoint import Checkpoint
from irv2.evaluate import BATCH_SIZE
from irv2.system.machine import cpu_has_bfloat16, num_cores
from irv2.train import loop
from irv2.train.data.features import Features
from irv2.train.finetune import finetune
from irv2.train.settings import FEATURE_CROPS
from irv2.train.start import Request


def engine_images_per_s(checkpoint: Checkpoint) -> float:
    network = checkpoint.build_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = checkpoint.preprocess.crop
    images = torch.randn(BATCH_SIZE, 3, side, side).to(memory_format=torch.channels_last)
    times = []
    for _ in range(4):
        started = time.monotonic()
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()),
        ):
            network.features(images)
        times.append(time.monotonic() - started)
    return 3 * BATCH_SIZE / sum(times[1:])  # the first is slower


def link(photos: Path, root: Path, num_images: int) -> None:
    found = sorted(path for path in photos.glob("*/*") if path.is_file())
    for split, num in (("train", num_images), ("val", num_images // 10)):
        for i in range(num):
            path = root / split / "AB"[i % 2] / f"{i}{found[i % len(found)].suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(found[i % len(found)].absolute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    checkpoint = Checkpoint.load(arguments.checkpoint)
    found: dict[str, Any] = {"images": arguments.images, "engine": []}

    class Timed(Features):
        """Times the training images' features, and when all are there."""

        def _compute_train(self, crop: int, *rest: Any) -> None:
            started = time.monotonic()
            super()._compute_train(crop, *rest)
            found["pass_s"] = found.get("pass_s", 0.0) + time.monotonic() - started

        def compute(self, **options: Any) -> None:
            super().compute(**options)
            found["ready_at"] = time.monotonic()

    loop.Features = Timed  # type: ignore[misc]
    with TemporaryDirectory() as folder:
        data = Path(folder, "data")
        link(arguments.photos, data, arguments.images)
        request = Request(
            setting="finetune", out=Path(folder, "run"), data=data,
            init_from=arguments.checkpoint, workers=num_cores(),
        )  # fmt: skip
        found["engine"].append(engine_images_per_s(checkpoint))
        finetune(request, "head", None)
        found["head_s"] = time.monotonic() - found.pop("ready_at")
        found["engine"].append(engine_images_per_s(checkpoint))
    found["pass"] = FEATURE_CROPS * arguments.images / found.pop("pass_s")
    found["ratio"] = found["pass"] / (sum(found["engine"]) / len(found["engine"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
