"""Which ranges a model gets: those with which int8 answers its calibration images best."""

import logging

import onnx

from irv2.convert.onnx.calibrate import Calibration
from irv2.convert.onnx.int8 import quantize
from irv2.convert.onnx.ranges import METHODS, Method
from irv2.data.dataset import BadImages
from irv2.evaluate import classify_folder
from irv2.images.preprocess import Preprocess
from irv2.runners.onnx import OnnxRunner
from irv2.system.files import temporary_folder

logger = logging.getLogger(__name__)


def choose_method(
    model: onnx.ModelProto,
    calibration: Calibration,
    config: Preprocess,
    bad_images: BadImages = "error",
) -> Calibration:
    """Use the method with the fewest other answers than float32's; of equals, the first.

    Only the CPU's placement is tried: TensorRT's takes twice as long here. A method that changes
    no answer ends the search.
    """
    changed: dict[Method, int] = {}
    for method in METHODS:
        changed[method] = _num_changed(model, calibration.using(method), config, bad_images)
        if changed[method] == 0:
            break
    chosen = min(changed, key=changed.__getitem__)
    logger.info(
        "int8: ranges by %s; other answers than float32's on %d calibration images: %s",
        chosen,
        len(calibration.labels),
        ", ".join(f"{method} {changed.get(method, 'not tried')}" for method in METHODS),
    )
    return calibration.using(chosen)


def _num_changed(
    model: onnx.ModelProto, calibration: Calibration, config: Preprocess, bad_images: BadImages
) -> int:
    with temporary_folder() as folder:
        path = folder / "trial.onnx"
        onnx.save(quantize(model, calibration.ranges, "cpu"), path)
        runner = OnnxRunner(path)
    title = f"try {calibration.method}"
    [now] = classify_folder(
        [runner], calibration.images, config, bad_images=bad_images, title=title
    )
    return int((now.logits.argmax(axis=1) != calibration.logits.argmax(axis=1)).sum())
