"""Writing an ONNX model: with its metadata, checked, whole, and the same bytes every time."""

from collections.abc import Mapping
from pathlib import Path

import onnx

from irv2.errors import EngineError
from irv2.system.files import write_atomically


def write_model(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write `model` with `metadata` added. Raises EngineError where it is not a valid one."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **metadata})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(path, f"an invalid model was made ({error})") from error
    write_atomically(path, model.SerializeToString(deterministic=True))
