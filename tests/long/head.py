"""How fast a head trains: the feature pass beside its engine alone, and the epochs after it.

    python tests/long/head.py CHECKPOINT PHOTOS [--images 1000]

PHOTOS is a folder of class folders, whose pictures are repeated up to `--images` (half of them of
class A, half of B, as links; a tenth as many for validation). Prints a line of JSON: images/s of
the engine on batches in memory, of the feature pass, their ratio (the bar: 0.9), and the seconds
of 30 epochs after it (the bar: 10). The engine is timed before the pass and after it, since other
work on the machine changes both; the pass without its first augmentation, during which the engine
is opened. Three minutes for 1,000 images of the full network on 2 quiet cores.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from irv2.checkpoint import Checkpoint
from irv2.images.crops import BATCH_SIZE
from irv2.system.machine import cpu_has_bfloat16, num_cores
from irv2.train import loop
from irv2.train.data.feature_engine import WORTH_OPENVINO, FeatureEngine
from irv2.train.data.features import Features
from irv2.train.finetune import finetune
from irv2.train.start import Request

ENGINE_S = 5.0  # each of two measurements of the engine alone


def engine_images_per_s(checkpoint: Checkpoint) -> float:
    network = checkpoint.build_model().eval()
    engine = FeatureEngine(network, "bf16" if cpu_has_bfloat16() else "fp32", WORTH_OPENVINO)
    side = checkpoint.preprocess.crop
    images = torch.randn(BATCH_SIZE, 3, side, side).to(memory_format=torch.channels_last)
    engine(images)  # opens it
    started, done = time.monotonic(), 0
    while time.monotonic() - started < ENGINE_S:
        engine(images)
        done += BATCH_SIZE
    return done / (time.monotonic() - started)


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
    found: dict[str, Any] = {"images": arguments.images, "engine": [], "crops_s": []}

    class Timed(Features):
        """Times the training images' features, and when all are there."""

        def _compute_train(self, crop: int, *rest: Any) -> None:
            started = time.monotonic()
            super()._compute_train(crop, *rest)
            found["crops_s"].append(time.monotonic() - started)

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
    seconds = found["crops_s"][1:]
    found["pass"] = len(seconds) * arguments.images / sum(seconds)
    found["ratio"] = found["pass"] / (sum(found["engine"]) / len(found["engine"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
