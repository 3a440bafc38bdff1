"""Peers that `irv2 bench serve` compares with.

    python -m irv2.serve.bench.peers KIND BUNDLE FILE BACKEND

`bare`: the bundle's engine and our decoder in one loop with nothing around them; for each line of
seconds on stdin it prints images per second. `naive`: a first attempt, grpc.aio with Pillow and
no batching; it runs FILE of the bundle on BACKEND, as the others do: ONNX Runtime as it comes, or
OpenVINO with its hint for throughput.
"""

import asyncio
import io
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from irv2.bench.rounds import rate
from irv2.bundle import Bundle
from irv2.images.preprocess import center_window, preprocess, resized_shape
from irv2.manifest import Precision
from irv2.results import softmax
from irv2.runners import openvino
from irv2.runners.choose import open_best
from irv2.runners.onnx import import_onnxruntime
from irv2.serve.bench.site import make_pictures
from irv2.system.machine import num_cores
from irv2.types import FloatArray, UInt8Array
from irv2.v1 import classifier_pb2, classifier_pb2_grpc

BATCH = 8


def bare(bundle: Bundle) -> None:
    """Decode the next batch on every core while the engine runs one."""
    pictures = cycle(make_pictures())
    runner = open_best(bundle.path, bundle.artifacts).runner
    with runner, ThreadPoolExecutor(num_cores()) as pool:

        def decode_batch() -> list["Future[UInt8Array]"]:
            return [
                pool.submit(preprocess, next(pictures), bundle.preprocess) for _ in range(BATCH)
            ]

        waiting = decode_batch()

        def step() -> int:
            nonlocal waiting
            images = np.stack([future.result() for future in waiting])
            waiting = decode_batch()
            return len(runner.run_all(images, BATCH))

        step()
        say_ready("stdin")
        for line in sys.stdin:
            sys.stdout.write(f"{rate(step, float(line))}\n")
            sys.stdout.flush()


class PillowModel:
    """The peers' work: decode with Pillow, run an artefact with the backend's other defaults."""

    def __init__(self, bundle: Bundle, file: str, backend: str) -> None:
        self._config, self.classes = bundle.preprocess, bundle.classes
        [artifact] = [artifact for artifact in bundle.artifacts if artifact.file == file]
        path = bundle.path / file
        self._logits = (
            _with_openvino(path, artifact.precision, bundle.preprocess.crop)
            if backend == openvino.BACKEND
            else _with_onnxruntime(path)
        )

    def decode(self, encoded: bytes) -> UInt8Array:
        """Return uint8 RGB (S, S, 3)."""
        config = self._config
        with Image.open(io.BytesIO(encoded)) as image:
            height, width = resized_shape(image.height, image.width, config.resize)
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        top, left, size, _ = center_window(height, width, config.crop)
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def run(self, images: Sequence[UInt8Array]) -> FloatArray:
        """Return probabilities, float32 (N, classes)."""
        return softmax(self._logits(np.stack(images)))


def _with_onnxruntime(path: Path) -> Callable[[UInt8Array], FloatArray]:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_cores()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def _with_openvino(
    path: Path, precision: Precision, side: int
) -> Callable[[UInt8Array], FloatArray]:
    """As many streams as OpenVINO chooses for throughput, a request for each thread that asks."""
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": openvino.HINTS[precision],
        "INFERENCE_NUM_THREADS": num_cores(),
    }
    compiled = openvino.the_core().compile_model(path, "CPU", settings)
    mine = threading.local()
    first = compiled.create_infer_request()  # alone: irv2/runners/openvino.py
    first.infer({0: np.zeros((1, side, side, 3), np.uint8)})

    def logits(images: UInt8Array) -> FloatArray:
        if not hasattr(mine, "request"):
            mine.request = compiled.create_infer_request()
        found: FloatArray = mine.request.infer({0: images})[0].copy()
        return found

    return logits


class Naive(classifier_pb2_grpc.ClassifierServicer):
    """Answer requests of one image, each with a call of the engine."""

    def __init__(self, model: PillowModel) -> None:
        self._model = model

    async def Classify(  # noqa: N802 (gRPC's name)
        self, request: classifier_pb2.ClassifyRequest, context: object
    ) -> classifier_pb2.ClassifyResponse:
        """Return the five best classes."""
        loop = asyncio.get_running_loop()
        probabilities = await loop.run_in_executor(None, self._work, request.images[0].encoded)
        scores = [
            classifier_pb2.Score(
                index=i, label=self._model.classes[i], probability=probabilities[i]
            )
            for i in np.argsort(-probabilities)[:5].tolist()
        ]
        return classifier_pb2.ClassifyResponse(results=[classifier_pb2.Result(scores=scores)])

    def _work(self, encoded: bytes) -> FloatArray:
        probabilities: FloatArray = self._model.run([self._model.decode(encoded)])[0]
        return probabilities


async def naive(model: PillowModel) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    classifier_pb2_grpc.add_ClassifierServicer_to_server(Naive(model), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say_ready(f"127.0.0.1:{port}")
    await server.wait_for_termination()


def say_ready(address: str) -> None:
    """Print the line that tells the benchmark where to connect."""
    sys.stderr.write(f"ready {address}\n")


def main(kind: str, bundle: Bundle, file: str, backend: str) -> None:
    """Run the peer of this kind until it is killed."""
    if kind == "bare":
        bare(bundle)
    else:
        asyncio.run(naive(PillowModel(bundle, file, backend)))


if __name__ == "__main__":
    main(sys.argv[1], Bundle.open(Path(sys.argv[2])), *sys.argv[3:])
