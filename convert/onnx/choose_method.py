"""Which ranges a model gets: those with which int8 answers its calibration images best."""

import logging

import numpy as np
import onnx

from irv2.convert.onnx.calibrate import Calibration
from irv2.convert.onnx.int8 import quantize
from irv2.convert.onnx.ranges import METHODS, Method
from irv2.convert.onnx.trial import answers
from irv2.types import FloatArray, UInt8Array

logger = logging.getLogger(__name__)


def choose_method(
    model: onnx.ModelProto, calibration: Calibration, images: UInt8Array
) -> tuple[Calibration, FloatArray]:
    """Use the method with the fewest other answers than float32's; of equals, the first.

    `images` are the calibration's. Only the CPU's placement is tried: TensorRT's takes twice as
    long here. A method that changes no answer ends the search. Returns the calibration with the
    method and the logits of that placement.
    """
    best = calibration.logits.argmax(axis=1)
    logits: dict[Method, FloatArray] = {}
    changed: dict[Method, int] = {}
    for method in METHODS:
        int8 = quantize(model, calibration.using(method).ranges, "cpu")
        logits[method] = answers(int8, images, f"try {method}")
        changed[method] = int(np.sum(logits[method].argmax(axis=1) != best))
        if changed[method] == 0:
            break
    chosen = min(changed, key=changed.__getitem__)
    logger.info(
        "int8: ranges by %s; other answers than float32's on %d calibration images: %s",
        chosen,
        len(calibration.labels),
        ", ".join(f"{method} {changed.get(method, 'not tried')}" for method in METHODS),
    )
    return calibration.using(chosen), logits[chosen]
