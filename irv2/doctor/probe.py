"""What is tried in a process of its own, since a broken library may end it or never return.

`python -m irv2.doctor.probe TASK NAME ...` writes a line before each thing that it tries, and one
with what came of it, so that the caller knows at which one the process ended.
"""

import ctypes
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from irv2.errors import EngineError, Irv2Error

Answer: TypeAlias = dict[str, Any]
MODEL = Path(__file__).with_name("mean_colour.onnx")  # tests/helpers/mean_colour.py made it
# Of the CUDA driver's interface, which is fixed.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


def main(task: str, *names: str) -> None:
    """Do a task for each name. What libraries print goes to stderr, not into the answers."""
    with os.fdopen(os.dup(1), "w") as pipe:
        os.dup2(2, 1)
        for name in names:
            pipe.write(json.dumps({"trying": name}) + "\n")
            pipe.flush()
            pipe.write(json.dumps({"name": name, **_answer(TASKS[task], name)}) + "\n")
    os._exit(0)  # a library that crashes when it is unloaded has done its work


def _answer(task: Callable[[str], Answer], name: str) -> Answer:
    try:
        return task(name)
    except Irv2Error as error:
        text = str(Irv2Error(error.what, error.got, error.expected))
        return {"error": text, "way_out": error.way_out}
    except Exception as error:  # whatever a broken library raises
        return {"error": f"{type(error).__name__}: {error}"}


def load(module: str) -> Answer:
    """Import a module; say where the package lies that it is taken from."""
    place = None
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module.partition(".")[0])
        place = spec.origin if spec else None
    try:
        importlib.import_module(module)
    except Exception as error:
        return {"place": place, "error": f"{type(error).__name__}: {error}"}
    return {"place": place}


def run_backend(name: str) -> Answer:
    """Open the tiny model on a backend, and compare its answers with what they must be.

    TensorRT's runtime is started instead: it runs only what it has built, which takes long. Without
    a GPU, backends for one are imported and no more.
    """
    if name.startswith("tensorrt"):
        return _start_tensorrt(name)
    if name == "onnxruntime-cuda" and not _has_gpu():
        from irv2.runners.onnx import import_onnxruntime

        return {"version": str(import_onnxruntime().__version__), "lacks_gpu": True}
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    logits, version = (_run_torch if name == "torch" else _run_onnx)(name, images)
    error = float(np.abs(logits - images.mean((1, 2))).max())
    if not error < 0.01:  # of 255; nan is none
        raise EngineError(name, f"computes nonsense: off by {error:g}", "the images' mean colours")
    return {"version": version}


def _run_onnx(name: str, images: Any) -> tuple[Any, str]:  # noqa: ANN401 (arrays)
    from irv2.runners.base import Runner
    from irv2.runners.onnx import OnnxRunner
    from irv2.runners.openvino import BACKEND, OpenVinoRunner

    runner: Runner
    if name == BACKEND:
        runner = OpenVinoRunner(MODEL, "fp32", num_threads=1)
    else:
        runner = OnnxRunner(MODEL, name.removeprefix("onnxruntime-"), num_threads=1)
    with runner:
        return runner.run(images), runner.backend_version


def _run_torch(_: str, images: Any) -> tuple[Any, str]:  # noqa: ANN401
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    same = torch.eye(3, device=device)[:, :, None, None]
    means = torch.nn.functional.conv2d(batch, same).mean((2, 3))
    return means.cpu().numpy(), f"{torch.__version__} on {device}"


def _start_tensorrt(name: str) -> Answer:
    from irv2.runners.tensorrt import create, import_tensorrt, shared_logger

    trt = import_tensorrt("tensorrt_rtx" if name == "tensorrt_rtx" else "tensorrt")
    if _has_gpu():
        create(trt.Runtime, shared_logger(trt))
    return {"version": str(trt.__version__), "lacks_gpu": not _has_gpu()}


def try_kernel(_: str) -> Answer:
    """Resample by the kernel in use, and compare it with NumPy's."""
    import numpy as np

    from irv2.images.bicubic import kernel, numpy_kernel, taps

    image_hwc = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    lines = taps(20, 9, 0, 9), taps(30, 11, 0, 11)
    found, expected = np.empty((2, 9, 11, 3), np.uint8)
    kernel()(image_hwc, *lines, found)
    numpy_kernel(image_hwc, *lines, expected)
    if (found != expected).any():
        raise EngineError("compiled kernel", "gives other pixels than NumPy", "the same")
    return {"kernel": "NumPy" if kernel() is numpy_kernel else "compiled"}


def find_cache(_: str) -> Answer:
    """Say where the user's cache lies, without making one."""
    from irv2.system.cache import usual_folder

    return {"folder": str(usual_folder())}


def find_gpus(_: str) -> Answer:
    """Ask NVIDIA's driver for its version and its GPUs, without any library of CUDA's.

    The answer is empty where there is no driver.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return {} if "No such file" in str(error) else {"error": str(error)}
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))  # also where there is no GPU
    answer: Answer = {"cuda": [number.value // 1000, number.value % 1000 // 10], "gpus": []}
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number))
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        return answer | {"error": (text.value or b"").decode() or f"CUDA error {status}"}
    answer["gpus"] = [_describe_gpu(driver, index) for index in range(number.value)]
    return answer


def _has_gpu() -> bool:
    return bool(find_gpus("").get("gpus"))


def _describe_gpu(driver: ctypes.CDLL, index: int) -> str:
    name, num_bytes, values = ctypes.create_string_buffer(100), ctypes.c_size_t(), []
    driver.cuDeviceGetName(name, len(name), index)
    driver.cuDeviceTotalMem_v2(ctypes.byref(num_bytes), index)
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
        values.append(str(value.value))
    capability = ".".join(values)
    return f"{name.value.decode()}, compute capability {capability}, {num_bytes.value >> 30} GiB"


def read_bundle(path: str) -> Answer:
    """Check a bundle's hashes, and rank what may be served of it here."""
    from irv2.bundle import Bundle
    from irv2.manifest import MANIFEST, read_manifest
    from irv2.runners.choose import rank

    bundle = Bundle(Path(path), read_manifest(Path(path, MANIFEST)))
    wrong = [(str(what), reason, bundle.way_out(what)) for what, reason in bundle.check() if reason]
    candidates, rejected = rank(bundle.artifacts)
    return {
        "id": bundle.id,
        "wrong": wrong,
        "candidates": [
            {
                "file": artifact.file,
                "backend": evidence.backend,
                "images_per_s": evidence.images_per_s,
                "threads": evidence.threads,
            }
            for artifact, evidence in candidates
        ],
        "rejected": [{"what": each.what, **each._asdict()} for each in rejected],
    }


TASKS: dict[str, Callable[[str], Answer]] = {
    "load": load,
    "run": run_backend,
    "kernel": try_kernel,
    "cache": find_cache,
    "gpu": find_gpus,
    "bundle": read_bundle,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
