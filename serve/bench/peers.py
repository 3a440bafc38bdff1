"""Peers that `irv2 bench serve` compares with: `python -m irv2.serve.bench.peers KIND BUNDLE FILE`.

`bare`: the bundle's engine and our decoder in one loop with nothing around them; for each line of
seconds on stdin it prints images per second. `naive`: a first attempt, grpc.aio with Pillow and
ONNX Runtime as they come and no batching; it runs FILE of the bundle, as the others do.
"""

import asyncio
import io
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from irv2.bench.rounds import rate
from irv2.bundle import Bundle
from irv2.images.preprocess import center_window, preprocess, resized_shape
from irv2.results import softmax
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
    _, runner = open_best(bundle.path, bundle.artifacts)
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
            return len(runner.run(images))

        step()
        say_ready("stdin")
        for line in sys.stdin:
            sys.stdout.write(f"{rate(step, float(line))}\n")
            sys.stdout.flush()


class PillowOnnx:
    """The peers' work: decode with Pillow, run an artefact with ONNX Runtime's other defaults."""

    def __init__(self, bundle: Bundle, file: str) -> None:
        self._config, self.classes = bundle.preprocess, bundle.classes
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_cores()
        self._session = ort.InferenceSession(
            str(bundle.path / file), options, providers=["CPUExecutionProvider"]
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
        return softmax(self._session.run(["logits"], {"images": np.stack(images)})[0])


class Naive(classifier_pb2_grpc.ClassifierServicer):
    """Answer requests of one image, each with a call of the engine."""

    def __init__(self, model: PillowOnnx) -> None:
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


async def naive(model: PillowOnnx) -> None:
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


def main(kind: str, bundle: Bundle, file: str) -> None:
    """Run the peer of this kind until it is killed."""
    if kind == "bare":
        bare(bundle)
    else:
        asyncio.run(naive(PillowOnnx(bundle, file)))


if __name__ == "__main__":
    main(sys.argv[1], Bundle.open(Path(sys.argv[2])), sys.argv[3])
