"""A checkpoint's network as one ONNX file: `images` uint8 [N, S, S, 3] -> `logits` [N, classes].

Normalisation is inside the graph. Batch norm and the residual scale are folded into the
convolutions first, in float64: one operation less each, exact up to float32 rounding, and the
exporter has nothing left to fold.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from irv2 import __version__
from irv2.checkpoint import Checkpoint
from irv2.convert.onnx.interruptible import in_thread
from irv2.convert.onnx.model_file import write_model
from irv2.model.fold import fold
from irv2.model.paper import Normalized

OPSET = 18  # the first whose ReduceMean takes its axes as an input, as the exporter writes it
# torch and onnxscript log operators that they skip and passes that they run.
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def write_onnx(checkpoint: Checkpoint, checkpoint_sha256: str, path: Path) -> None:
    """Write the float32 model; the same checkpoint gives the same bytes.

    Raises EngineError if the result is not a valid model.
    """
    config = checkpoint.preprocess
    network = Normalized(fold(checkpoint.build_model()), config.mean, config.std).eval()
    model = _export(network, config.crop)
    _strip(model)
    write_model(model, path, _metadata(checkpoint, checkpoint_sha256))


def versions() -> dict[str, str]:
    """The libraries that made the file, for the bundle's `built_with`."""
    import onnxscript

    return {
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
    }


def _export(network: nn.Module, image_size: int) -> onnx.ModelProto:
    # Two images: the exporter would take a batch of one for a constant.
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)

    def work() -> torch.onnx.ONNXProgram | None:
        with _quiet():
            return torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                external_data=False,
            )

    program = in_thread(work)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Drop notes that name files of the machine which exported: stack traces, module scopes."""
    graph = model.graph
    for item in [
        graph,
        *graph.node,
        *graph.value_info,
        *graph.initializer,
        *graph.input,
        *graph.output,
    ]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _metadata(checkpoint: Checkpoint, checkpoint_sha256: str) -> dict[str, str]:
    preprocess: dict[str, Any] = checkpoint.preprocess.to_json()
    return {
        "arch": checkpoint.model.arch,
        "checkpoint_sha256": checkpoint_sha256,
        "classes": json.dumps(checkpoint.classes, ensure_ascii=False),
        "irv2_version": __version__,
        "preprocess": json.dumps(preprocess),
        "preprocess_sha256": checkpoint.preprocess.sha256,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch warns about its own use of what it is about to rename.
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
