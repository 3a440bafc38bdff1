"""ONNX Runtime on the CPU or a CUDA GPU."""

import os
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from irv2.errors import EngineError
from irv2.runners.base import Runner
from irv2.runners.cuda import PinnedBatches
from irv2.system.machine import num_cores
from irv2.system.stop import raise_if_stopped
from irv2.types import FloatArray, UInt8Array

MAX_BATCH = 64
FATAL = 4  # of ONNX Runtime's log, which goes to stderr by itself: what fails is raised as well


class OnnxRunner(Runner):
    """Runs an ONNX model that maps `images`, uint8 (N, S, S, 3), to `logits`."""

    def __init__(
        self,
        model_path: Path,
        device: str = "cpu",
        num_threads: int = 0,
        max_batch: int = MAX_BATCH,
        gpu: int = 0,
        num_streams: int = 1,
    ) -> None:
        """Load the model onto `device`, cpu or cuda; `gpu` is the GPU's index.

        `num_threads` 0 takes one per core that may be used. On a CPU `num_streams` share them, one
        at least each; a GPU has one stream. Raises EngineError if the model can't run there.
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        self.num_streams = num_streams if device == "cpu" else 1
        # Never its own default: one per core of the machine, whatever the quota, each bound to one.
        self.num_threads = num_threads or num_cores()
        options.intra_op_num_threads = max(1, self.num_threads // self.num_streams)
        # Spinning threads would steal cores from decoding; not spinning costs the engine 1-3 %.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not _has_vnni():
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = FATAL
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        settings: dict[str, str] = {}
        if device == "cuda":  # or else ONNX Runtime would silently compute on the CPU
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            settings = cuda_settings(gpu)
            ort.preload_dlls()
        try:
            self._sessions = [
                ort.InferenceSession(str(model_path), options, providers=[(provider, settings)])
                for _ in range(self.num_streams)
            ]
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise_if_stopped()
            raise EngineError(model_path, f"ONNX Runtime can't load it ({error})") from error
        first = self._sessions[0]
        found = first.get_providers()[0]
        if found != provider:
            raise EngineError(model_path, f"runs on {found}", provider, "check driver and CUDA")
        self.backend, self.backend_version = f"onnxruntime-{device}", str(ort.__version__)
        self.max_batch = max_batch
        self.image_size = int(first.get_inputs()[0].shape[1])
        self.num_classes = int(first.get_outputs()[0].shape[1])
        # The one that has rested longest comes first, so that as many calls reach every session.
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for session in self._sessions:
            self._idle.put(session)
        self._pinned = PinnedBatches(gpu, self.image_size) if device == "cuda" else None

    @property
    def metadata(self) -> dict[str, str]:
        """What the exporter wrote into the file: classes, preprocessing, checkpoint hash."""
        return dict(self._sessions[0].get_modelmeta().custom_metadata_map)

    def run(self, images: UInt8Array) -> FloatArray:
        """Map uint8 RGB (N, S, S, 3) to float32 logits (N, num_classes); raises EngineError.

        ONNX Runtime reads `images` in place; binding them (IOBinding) would save no copy.
        """
        session = self._idle.get()
        try:
            logits: FloatArray = session.run(["logits"], {"images": images})[0]
        except Exception as error:
            raise_if_stopped()
            raise EngineError("ONNX Runtime", str(error)) from error
        finally:
            self._idle.put(session)
        return logits

    def batch_memory(self, num_images: int) -> UInt8Array:
        """Allocate uint8 (num_images, S, S, 3); page-locked if a GPU is to fetch it."""
        return self._pinned.new(num_images) if self._pinned else super().batch_memory(num_images)

    def close(self) -> None:
        """Free the memory of batches; the sessions are freed with this object."""
        if self._pinned:
            self._pinned.close()


def cuda_settings(gpu: int) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider.

    Its CUDA graphs stay off: a session can record inputs of only one shape at one address, and
    batches vary in size.
    """
    return {
        "device_id": str(gpu),
        "use_tf32": "0",  # products of 10-bit mantissas are not float32
        # EXHAUSTIVE, the default, would time every algorithm again for each new batch size.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _has_vnni() -> bool:
    """Whether this processor sums products of uint8 and int8 in 32 bits, according to Linux.

    An x86 without VNNI sums pairs in 16 bits, which saturate, unless ONNX Runtime is asked for its
    exact kernels. With VNNI, those change no bit and are 2.6 times slower (DECISIONS.md).
    """
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def is_installed() -> bool:
    """Whether there is ONNX Runtime to import, of either package."""
    return bool(_installed())


def import_onnxruntime() -> Any:  # noqa: ANN401 (a module)
    """Import onnxruntime, its telemetry off; raises EngineError with the way out if that fails.

    The packages onnxruntime and onnxruntime-gpu install into the same folder: with both, chance
    decides which one is imported, so that is refused.
    """
    found = _installed()
    if len(found) == 2:
        raise EngineError(
            "onnxruntime",
            "both onnxruntime and onnxruntime-gpu are installed",
            "one of them",
            "pip uninstall both, then install irv2[cpu] or irv2[gpu]",
        )
    if not found:
        raise EngineError(
            "onnxruntime", "not installed", way_out='pip install "irv2[cpu]" or "irv2[gpu]"'
        )
    # Its wheels for Linux tell Microsoft of the machine from 1.29 on (microsoft/onnxruntime#27379).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except (ImportError, OSError) as error:  # a library of it that is damaged or missing
        raise_if_stopped()
        raise EngineError(
            "onnxruntime",
            f"can't be imported ({error})",
            way_out=f"pip install --force-reinstall {found[0]}",
        ) from error
    onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


def _installed() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            version(name)
            found.append(name)
    return found
