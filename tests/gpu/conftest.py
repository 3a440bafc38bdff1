"""A bundle with every engine, and the one place that says what is missing to run it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import make_checkpoint, write_images

from irv2.convert.candidate import ExportOptions
from irv2.convert.engine.options import EngineOptions
from irv2.convert.export import export
from irv2.errors import EngineError
from irv2.runners.onnx import import_onnxruntime
from irv2.runners.tensorrt import import_tensorrt
from irv2.system.gpu import find_gpu

# 48 images can't show less than 6.05 points.
LENIENT = {"tolerance_top1": 7.0, "tolerance_top5": 7.0}


@pytest.fixture(scope="session")
def require() -> Callable[[str], Any]:
    """Gives a library that computes on the GPU; skips the test where it or the GPU is missing."""

    def library(name: str) -> Any:
        try:
            find_gpu()
            if name != "onnxruntime":
                return import_tensorrt(name)
            module = import_onnxruntime()
        except EngineError as error:
            pytest.skip(f"{name} has nothing to run on here ({error})")
        if "CUDAExecutionProvider" not in module.get_available_providers():
            pytest.skip("onnxruntime is installed; expected onnxruntime-gpu")
        return module

    return library


@pytest.fixture(scope="session")
def tensorrt(require: Callable[[str], Any]) -> Any:
    return require("tensorrt")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_images(tmp_path_factory.mktemp("gpu") / "data")
    other = write_images(tmp_path_factory.mktemp("other"), seed=1)
    (other / "val").rename(root / "train")
    return root


@pytest.fixture(scope="session")
def checkpoint_path(data: Path) -> Path:
    path = data.parent / "best.pt"
    make_checkpoint(data).save(path)
    return path


@pytest.fixture(scope="session")
def bundle(tensorrt: Any, data: Path, checkpoint_path: Path) -> Path:
    """Every precision as ONNX and as an engine of `tensorrt`. Not to be changed."""
    overlapping = EngineOptions(profiles=((1, 4, 16), (6, 8, 12)))
    options = ExportOptions(
        precisions=("fp32", "fp16", "bf16", "int8"),
        trt=True,
        engine=overlapping,
        max_batch=16,
        **LENIENT,
    )
    report = export(checkpoint_path, data, None, options)
    assert not report.failed, report.to_table()
    return report.bundle


@pytest.fixture
def onnx_bundle(data: Path, checkpoint_path: Path, tmp_path: Path) -> Path:
    """float32 as ONNX alone, to write into."""
    options = ExportOptions(precisions=("fp32",), max_batch=16, **LENIENT)
    report = export(checkpoint_path, data, tmp_path / "onnx.bundle", options)
    assert not report.failed, report.to_table()
    return report.bundle
