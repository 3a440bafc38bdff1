"""ONNX Runtime on the CPU or a CUDA GPU."""

from pathlib import Path
from typing import Any

from irv2.errors import EngineError
from irv2.runners.base import Runner
from irv2.runners.cuda import PinnedBatches
from irv2.types import FloatArray, UInt8Array

MAX_BATCH = 64


class OnnxRunner(Runner):
    """Runs an ONNX model that takes `images` uint8 (N, S, S, 3) and gives `logits`."""

    def __init__(
        self,
        model_path: Path,
        device: str = "cpu",
        num_threads: int = 0,
        max_batch: int = MAX_BATCH,
        gpu: int = 0,
    ) -> None:
        """`device` is cpu or cuda, then `gpu` says which; `num_threads` 0 takes one per core."""
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Spinning threads would steal the cores that decode images; it costs the engine 1-3 %.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not _has_vnni():
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 3
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        settings: dict[str, str] = {}
        if device == "cuda":  # otherwise ONNX Runtime silently computes on the CPU
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            settings = cuda_settings(gpu)
            ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(
                str(model_path), options, providers=[(provider, settings)]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise EngineError(model_path, f"ONNX Runtime can't load it ({error})") from error
        found = self._session.get_providers()[0]
        if found != provider:
            raise EngineError(model_path, f"runs on {found}", provider, "check driver and CUDA")
        self.backend = f"onnxruntime-{device}"
        self.max_batch = max_batch
        self.image_size = int(self._session.get_inputs()[0].shape[1])
        self.num_classes = int(self._session.get_outputs()[0].shape[1])
        self._pinned = PinnedBatches(gpu, self.image_size) if device == "cuda" else None

    @property
    def metadata(self) -> dict[str, str]:
        """What the exporter wrote into the file: classes, preprocessing, checkpoint hash."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, images: UInt8Array) -> FloatArray:
        """uint8 RGB (N, S, S, 3) -> float32 logits (N, num_classes).

        ONNX Runtime reads `images` where they lie; binding them (IOBinding) would spare no copy.
        """
        try:
            logits: FloatArray = self._session.run(["logits"], {"images": images})[0]
        except Exception as error:
            raise EngineError("ONNX Runtime", str(error)) from error
        return logits

    def batch_memory(self, num_images: int) -> UInt8Array:
        """uint8 (num_images, S, S, 3); page-locked for a GPU, which fetches a batch itself."""
        return self._pinned.new(num_images) if self._pinned else super().batch_memory(num_images)

    def close(self) -> None:
        """Free the memory of batches; the session goes with its object."""
        if self._pinned:
            self._pinned.close()


def cuda_settings(gpu: int) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider.

    Its CUDA graphs stay off: a session can record inputs of one shape at one address only, and
    batches are of any size.
    """
    return {
        "device_id": str(gpu),
        "use_tf32": "0",  # products of 10-bit mantissas are not float32
        # EXHAUSTIVE, the default, times every algorithm anew for each batch size that it meets.
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _has_vnni() -> bool:
    """Whether this processor sums products of uint8 and int8 in 32 bits, as Linux tells.

    An x86 without VNNI sums pairs in 16 bits, which saturate, unless ONNX Runtime is asked for its
    exact kernels. With VNNI these change no bit and are 2.6 times slower (DECISIONS.md).
    """
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def import_onnxruntime() -> Any:  # noqa: ANN401 (a module)
    """The module onnxruntime; raises EngineError naming the extra where it is missing.

    The packages onnxruntime and onnxruntime-gpu own the same folder: with both installed, which
    one is imported is a matter of chance, so that is refused.
    """
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
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
    import onnxruntime

    return onnxruntime
