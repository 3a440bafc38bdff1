"""OpenVINO on the CPU, in exactly the precision that is asked for."""

import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np

from irv2.errors import EngineError
from irv2.manifest import Precision
from irv2.runners.base import Runner
from irv2.system.cache import cached
from irv2.system.files import file_sha256
from irv2.system.machine import cpu_flags, num_cores, processor
from irv2.system.stop import raise_if_stopped
from irv2.types import FloatArray, UInt8Array

BACKEND = "openvino-cpu"
# A batch is run as parts of these sizes, each compiled with fixed shapes: with a free batch size,
# OpenVINO has given wrong logits and crashed with int8 on AMX. Each size costs 150 MB with the full
# network in int8.
SIZES = (4, 1)
# What layers compute in that the file leaves in floating point. Always said: by default OpenVINO
# takes bfloat16 on AMX, whatever the file says. float16 files are not for it: it has no such
# kernels for most processors.
HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}

PRECISIONS = tuple(HINTS)

# A process's first inference must be alone: two threads in it wait for each other for ever, one
# with Python's lock for a static variable of the bindings, one the other way round (2026.4.1).
_FIRST = threading.Lock()

# Compiled models in the user's cache: the full network takes 66 MB in int8, 253 in float32.
MAX_CACHE_BYTES = 2**29

_Any: TypeAlias = Any  # an object of openvino, which has no types
_Requests: TypeAlias = dict[int, _Any]  # by size


class OpenVinoRunner(Runner):
    """Runs an ONNX model that maps `images`, uint8 (N, S, S, 3), to `logits`."""

    backend = BACKEND
    part_sizes = SIZES

    def __init__(
        self,
        model_path: Path,
        precision: Precision,
        num_threads: int = 0,
        num_streams: int = 1,
        max_batch: int = 64,
        *,
        use_cache: bool = False,
    ) -> None:
        """Compile the model for `num_streams` batches at once, each on its part of the threads.

        `num_threads` 0 takes one thread per core. With `use_cache`, what was compiled is kept in
        the user's cache for the next time. Raises EngineError if the model can't run here in that
        precision.
        """
        ov = import_openvino()
        core = the_core()
        self.num_threads = num_threads or num_cores()
        wanted = properties(precision, self.num_threads, num_streams)
        compiled = {}
        with translated(model_path, "OpenVINO can't load it"):
            sha256 = file_sha256(model_path) if use_cache else None
            model = core.read_model(model_path)
            self._read_shapes(model)
            for size in SIZES:
                shape = [size, self.image_size, self.image_size, 3]
                make = partial(_compile, core, model, shape, wanted)
                compiled[size] = (
                    make() if sha256 is None else _cached(core, sha256, shape, wanted, make)
                )
        require_precision(compiled[SIZES[0]], precision, model_path)
        self.backend_version = ov.get_version().partition("-")[0]  # without the build
        self.num_streams, self.max_batch = num_streams, max_batch
        self._free: SimpleQueue[_Requests] = SimpleQueue()
        for _ in range(num_streams):
            self._free.put({size: each.create_infer_request() for size, each in compiled.items()})
        with _FIRST:
            self.run(np.zeros((1, self.image_size, self.image_size, 3), np.uint8))

    def _read_shapes(self, model: _Any) -> None:
        self.image_size = model.input(0).partial_shape[1].get_length()
        self.num_classes = model.output(0).partial_shape[1].get_length()
        known = model.has_rt_info("framework")
        self._metadata = dict(model.get_rt_info("framework").value) if known else {}

    @property
    def metadata(self) -> dict[str, str]:
        """What the exporter wrote into the file: classes, preprocessing, checkpoint hash."""
        return self._metadata

    def run(self, images: UInt8Array) -> FloatArray:
        """Map uint8 RGB (N, S, S, 3) to float32 logits (N, num_classes); raises EngineError."""
        requests = self._free.get()
        try:
            parts = [requests[len(part)].infer({0: part})[0].copy() for part in _parts(images)]
        except Exception as error:
            raise_if_stopped()
            raise EngineError("OpenVINO", _reason(error)) from error
        finally:
            self._free.put(requests)
        return np.concatenate(parts)


def properties(precision: Precision, num_threads: int, num_streams: int) -> dict[str, Any]:
    """Return the properties with which a model is compiled for the CPU."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": num_streams,
    }


def require_precision(compiled: _Any, precision: Precision, what: object) -> None:
    """Raise EngineError about `what` if OpenVINO computes it in another precision here."""
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if found != HINTS[precision]:
        raise EngineError(what, f"OpenVINO computes it in {found} here", HINTS[precision])


@contextmanager
def translated(what: object, failure: str) -> Iterator[None]:
    """Within the block, raise what OpenVINO raises as an EngineError about `what`."""
    try:
        yield
    except Exception as error:  # OpenVINO's exceptions have no common base class
        raise_if_stopped()
        raise EngineError(what, f"{failure} ({_reason(error)})") from error


def _compile(core: _Any, model: _Any, shape: list[int], wanted: dict[str, Any]) -> _Any:
    model.reshape({0: shape})
    return core.compile_model(model, "CPU", wanted)


def _cached(
    core: _Any, sha256: str, shape: list[int], wanted: dict[str, Any], make: Callable[[], _Any]
) -> _Any:
    """Take the compiled model from the cache, or else `make` it and keep it there.

    This is our cache, not OpenVINO's own, which takes a spoilt file for a model with other answers.
    """

    def load(content: bytes) -> _Any:
        try:
            return core.import_model(io.BytesIO(content), "CPU", wanted)
        except Exception as error:
            raise_if_stopped()
            raise ValueError(_reason(error)) from error

    key = {
        "model": sha256,
        "shape": shape,
        "properties": wanted,
        "version": import_openvino().get_version(),
        "processor": [processor(), *sorted(cpu_flags())],
    }
    return cached("openvino", key, load=load, make=make, dump=_exported, most_bytes=MAX_CACHE_BYTES)


def _exported(compiled: _Any) -> bytes:
    content: bytes = compiled.export_model().getvalue()
    return content


def _parts(images: UInt8Array) -> Iterator[UInt8Array]:
    for size in SIZES:
        while len(images) >= size:
            yield images[:size]
            images = images[size:]


def _reason(error: Exception) -> str:
    """OpenVINO's message on one line, without the places in its sources."""
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith("Exception from"))


def is_installed() -> bool:
    """Whether there is OpenVINO to import."""
    return find_spec("openvino") is not None


def import_openvino() -> _Any:
    """Import openvino, its telemetry off; raises EngineError naming the extra if that fails.

    It reports its own import to Google Analytics, from a thread and a file in the user's home,
    unless the package openvino_telemetry can't be imported: then it does without.
    """
    try:
        with _hidden("openvino_telemetry"):
            import openvino
    except ImportError as error:
        raise_if_stopped()
        raise EngineError(
            "OpenVINO", f"can't be imported ({error})", way_out='pip install "irv2[openvino]"'
        ) from error
    return openvino


@cache
def the_core() -> _Any:
    """Return OpenVINO's Core, one for the process.

    On AMX each gives the thread that made it a stack for signals. Of several, the last one to go
    left the stack of one that had gone before, and the next signal ended the process (2026.4.1).
    """
    return import_openvino().Core()


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports of a package fail, unless it was imported before."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
