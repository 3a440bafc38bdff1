"""How a quantised model answers the calibration images, which every trial takes anew."""

import numpy as np
import onnx

from irv2.convert.onnx.calibrate import Calibration
from irv2.data.dataset import BadImages
from irv2.evaluate import load_batches
from irv2.images.preprocess import Preprocess
from irv2.runners.onnx import OnnxRunner
from irv2.system.files import temporary_folder
from irv2.system.progress import progress
from irv2.types import FloatArray, UInt8Array

_BATCH = 8


def load_images(
    calibration: Calibration, config: Preprocess, bad_images: BadImages = "error"
) -> UInt8Array:
    """Load all calibration images as uint8 (N, S, S, 3), a quarter of a megabyte each."""
    batches = load_batches(calibration.images, config, _BATCH, bad_images)
    return np.concatenate([batch.images for batch in batches])


def answers(model: onnx.ModelProto, images: UInt8Array, title: str | None = None) -> FloatArray:
    """The model's logits (N, num_classes) of uint8 images (N, S, S, 3), on the CPU.

    Shows its progress if it has a `title`.
    """
    with temporary_folder() as folder:
        path = folder / "trial.onnx"
        onnx.save(model, path)
        runner = OnnxRunner(path)
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    shown = progress(batches, title, len(batches), "batches") if title else batches
    return np.concatenate([runner.run(batch) for batch in shown])
