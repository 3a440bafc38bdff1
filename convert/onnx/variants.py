"""The other precisions of a bundle's float32 ONNX model, each a file of its own, not yet judged."""

import logging
from collections.abc import Mapping
from pathlib import Path

import onnx

from irv2 import __version__
from irv2.convert.onnx.calibrate import Calibration
from irv2.convert.onnx.half import Half, to_half
from irv2.convert.onnx.int8 import Target, quantize
from irv2.convert.onnx.model_file import write_model
from irv2.manifest import Artifact, Precision
from irv2.runners.choose import INT8_CPU, INT8_TRT
from irv2.runners.onnx import import_onnxruntime
from irv2.system.files import file_sha256
from irv2.system.machine import describe_machine

logger = logging.getLogger(__name__)

_INT8_FILES: dict[Target, str] = {"cpu": INT8_CPU, "trt": INT8_TRT}


def write_half(fp32: Artifact, folder: Path, precision: Half) -> Artifact:
    """`model.fp16.onnx` or `model.bf16.onnx`, beside the float32 model in `folder`."""
    model = to_half(onnx.load(folder / fp32.file), precision)
    return _write(model, folder / f"model.{precision}.onnx", precision, fp32, _versions())


def write_int8(
    model: onnx.ModelProto,
    fp32: Artifact,
    folder: Path,
    calibration: Calibration,
    kept: Mapping[str, list[str]],
) -> list[Artifact]:
    """`model.int8-cpu.onnx` and `model.int8-trt.onnx`; `kept` blocks and nodes stay float32."""
    made_with = {
        **_versions(),
        "onnxruntime": import_onnxruntime().__version__,
        **calibration.record,
        "float32_blocks": ", ".join(kept) or "none",
    }
    nodes = [name for names in kept.values() for name in names]
    return [
        _write(
            quantize(model, calibration.ranges, target, nodes),
            folder / file,
            "int8",
            fp32,
            made_with,
        )
        for target, file in _INT8_FILES.items()
    ]


def _write(
    model: onnx.ModelProto,
    path: Path,
    precision: Precision,
    fp32: Artifact,
    made_with: dict[str, str],
) -> Artifact:
    logger.info("export: %s", path.name)
    write_model(model, path, made_with | {"precision": precision, "built_from": fp32.sha256})
    return Artifact(
        file=path.name,
        sha256=file_sha256(path),
        format="onnx",
        precision=precision,
        max_batch=fp32.max_batch,
        built_from=fp32.sha256,
        gpu=None,
        parity=None,
        built_with=made_with | {"machine": describe_machine()},  # the file is the same elsewhere
    )


def _versions() -> dict[str, str]:
    return {"irv2": __version__, "onnx": onnx.__version__}
