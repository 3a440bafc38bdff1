"""The backends by name, without their libraries: what a command line offers of them."""

# Their precisions, likely fastest first: the order where no speed is recorded. What is not named is
# no faster than float32. ONNX Runtime has no bf16 on a CPU, and on CUDA it computes quantised
# models in float32.
LIKELY: dict[str, tuple[str, ...]] = {
    "tensorrt": ("int8", "fp16", "bf16", "fp32"),
    "tensorrt_rtx": ("int8", "fp16", "bf16", "fp32"),
    "onnxruntime-cuda": ("fp16", "bf16", "fp32"),
    "openvino-cpu": ("int8", "bf16", "fp32"),
    "onnxruntime-cpu": ("int8", "fp32", "fp16"),
}
BACKENDS = tuple(LIKELY)
# Threads of a stream on a CPU, unless told otherwise. With ONNX Runtime a second one makes a lone
# image 1.85 times as fast (DECISIONS.md, 2026-11-26), so that 8 % of the work is not shared out
# (Amdahl's law): 4 threads do 81 % of what they could do apart, 8 do 64 % and 32 only 29 %. This is
# calculated, not measured, beyond 2 cores. With OpenVINO a second one gains a sixth for a lone
# image, and two streams of one answer 1.5 times as many as one of two (DECISIONS.md, 2026-11-30).
THREADS_PER_STREAM = 4
_THREADS_PER_STREAM = {"openvino-cpu": 1}


def default_streams(backend: str, num_threads: int) -> int:
    """How many streams so many threads of a CPU are divided into, unless told otherwise."""
    return max(1, num_threads // _THREADS_PER_STREAM.get(backend, THREADS_PER_STREAM))
