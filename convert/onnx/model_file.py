"""Write an ONNX model: with its metadata, checked, whole, and the same bytes every time."""

import logging
from collections.abc import Mapping
from pathlib import Path

import onnx

from irv2 import __version__
from irv2.convert.provenance import new_artifact
from irv2.errors import EngineError
from irv2.manifest import Artifact, Precision
from irv2.system.files import write_atomically

logger = logging.getLogger(__name__)

IR_VERSION = 8  # of 2021: a runtime refuses any file above its own, and nothing here needs more


def write_model(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write `model` with `metadata` added. Raises EngineError if it is not valid."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **metadata})
    model.ir_version = IR_VERSION
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(path, f"an invalid model was made ({error})") from error
    write_atomically(path, model.SerializeToString(deterministic=True))


def write_variant(
    model: onnx.ModelProto,
    path: Path,
    precision: Precision,
    fp32: Artifact,
    made_with: Mapping[str, str],
) -> Artifact:
    """Write a model that was made from the float32 one, and return its record.

    The machine is in the record alone: the file is the same wherever it is made.
    """
    logger.info("export: %s", path.name)
    origin = {"precision": precision, "built_from": fp32.sha256}
    write_model(model, path, {"irv2": __version__, **made_with, **origin})
    return new_artifact(path, precision, fp32.max_batch, fp32.sha256, made_with)
