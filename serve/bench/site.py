"""Set-up of the benchmarks: generated pictures, a tiny network, servers as real processes.

The tiny network costs the engine next to nothing, so what remains is the server itself.
"""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from irv2.bundle import Bundle
from irv2.errors import EngineError, UsageError
from irv2.images.preprocess import Preprocess, preprocess
from irv2.manifest import (
    MANIFEST,
    ONNX_FILE,
    Artifact,
    ErrorChange,
    Parity,
    Source,
    manifest_json,
    new_manifest,
)
from irv2.runners.choose import open_best
from irv2.system.files import file_sha256
from irv2.system.stop import raise_if_stopped
from irv2.types import FloatArray

NUM_PICTURES = 64
HEIGHT, WIDTH = 375, 500
NUM_CLASSES = 1000
STRIDE = 37  # of the pixels that the tiny network looks at: 9 x 9 of 299 x 299


def make_pictures() -> list[bytes]:
    """Make 64 JPEGs of 500x375, about 40 kB each: soft shapes with grain, the same every time."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(NUM_PICTURES):
        shapes = rng.integers(0, 256, (9, 12, 3)).astype(np.float32)
        soft = cv2.resize(shapes, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 4, (HEIGHT, WIDTH, 1))
        image = np.clip(soft + grain, 0, 255).astype(np.uint8)
        pictures.append(simplejpeg.encode_jpeg(image, quality=85))
    return pictures


def write_tiny_bundle(folder: Path, resampling: str) -> Path:
    """Write a bundle whose network is one matrix from 243 values of the image to 1000 classes."""
    try:
        import onnx
    except ImportError as error:
        raise_if_stopped()
        raise EngineError(
            "irv2 bench",
            "package onnx, which makes the tiny network, is not installed",
            way_out='pip install "irv2[convert]", or name a bundle',
        ) from error
    folder.mkdir(parents=True)
    config = Preprocess(resampling=resampling)
    model_path = folder / ONNX_FILE
    model = onnx.parser.parse_model(_tiny_model(config.crop))
    weight = onnx.numpy_helper.from_array(_tiny_weight(config.crop), "weight")
    model.graph.initializer.append(weight)
    onnx.save(model, model_path)
    artifact = Artifact(
        file=model_path.name,
        sha256=file_sha256(model_path),
        format="onnx",
        precision="fp32",
        max_batch=64,
        built_from=hashlib.sha256().hexdigest(),
        built_with={},
        gpu=None,
        parity=_by_definition(),
    )
    source = Source(checkpoint_sha256=artifact.built_from, arch="tiny", setting="", epoch=0)
    classes = [f"class {i}" for i in range(NUM_CLASSES)]
    manifest = new_manifest(source, config.to_json(), classes, [artifact], files={})
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return folder


def _tiny_model(side: int) -> str:
    """Return the model in ONNX's textual form; the caller adds the matrix `weight`."""
    return f"""
    <ir_version: 10, opset_import: ["" : 20]>
    tiny (uint8[N, {side}, {side}, 3] images) => (float[N, {NUM_CLASSES}] logits)
    <int64[2] starts = {{0, 0}}, int64[2] ends = {{{side}, {side}}}, int64[2] axes = {{1, 2}},
     int64[2] steps = {{{STRIDE}, {STRIDE}}},
     float middle = {{128.0}}, float scale = {{0.01}}> {{
        grid = Slice(images, starts, ends, axes, steps)
        floats = Cast<to = 1>(grid)
        centred = Sub(floats, middle)
        scaled = Mul(centred, scale)
        flat = Flatten<axis = 1>(scaled)
        logits = MatMul(flat, weight)
    }}"""


def _tiny_weight(side: int) -> FloatArray:
    num_values = 3 * len(range(0, side, STRIDE)) ** 2
    return np.random.default_rng(0).normal(size=(num_values, NUM_CLASSES)).astype(np.float32)


def _by_definition() -> Parity:
    """Return a verdict: the network is its own reference, and only benchmarks serve it."""
    same = ErrorChange(
        reference_error=0.0,
        error=0.0,
        lost=0,
        gained=0,
        upper_loss_points=0.0,
        tolerance_points=0.0,
    )
    return Parity(
        verdict="passed",
        basis="identical",
        n=0,
        data_sha256="",
        confidence=0.95,
        agreement=100.0,
        max_abs_logit_diff=0.0,
        ran_on="onnxruntime-cpu",
        machine="none: made for a benchmark",
        top1=same,
        top5=same,
    )


class Served:
    """A server process: its address, its start-up time and what it uses. Linux only."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it and wait for its line `ready HOST:PORT`. Raises EngineError if none comes."""
        started_at = time.perf_counter()
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._popen.stderr
        lines = []
        for line in self._popen.stderr:
            if ready := re.match(r"ready (\S+)(?:.* http=(\S+))?", line):
                self.ready_s = time.perf_counter() - started_at
                self.address, self.http = ready.groups()
                # Drop its log: a full pipe would stop it in the middle of a measurement.
                self._draining = threading.Thread(target=deque, args=(self._popen.stderr, 0))
                self._draining.start()
                return
            lines.append(line)
        self._popen.wait()
        raise EngineError(" ".join(command), "ended: " + " ".join(lines), "a line `ready ...`")

    @property
    def pid(self) -> int:
        return self._popen.pid

    def cpu_s(self) -> float:
        """Return the processor time that it and its children have used."""
        ticks = sum(_cpu_ticks(pid) for pid in self._tree(self.pid))
        return ticks / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Return its and its children's resident memory in 10^6 bytes; shared pages count twice."""
        pages = sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._tree(self.pid)
        )
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def ask(self, line: str) -> str:
        """Write a line to its stdin and return the next line of its stdout."""
        assert self._popen.stdin
        assert self._popen.stdout
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()
        return self._popen.stdout.readline()

    def stop(self) -> None:
        """Kill it and the processes that it started."""
        for pid in reversed(list(self._tree(self.pid))):
            os.kill(pid, signal.SIGKILL)
        self._draining.join()
        with self._popen:  # closes its pipes
            pass

    def _tree(self, pid: int) -> Iterator[int]:
        yield pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # threads come and go
                for child in (task / "children").read_text().split():
                    yield from self._tree(int(child))


def _cpu_ticks(pid: int) -> int:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])  # utime and stime (man 5 proc)


def our_top1(
    bundle: Bundle, pictures: Sequence[bytes], backend: str | None = None
) -> tuple[str, str, list[int]]:
    """Return the model file and backend served here, and each picture's best class, run alone."""
    best = open_best(bundle.path, bundle.artifacts, backend=backend)
    with best.runner as runner:
        logits = [runner.run(preprocess(each, bundle.preprocess)[None])[0] for each in pictures]
    return best.artifact.file, runner.backend, [int(row.argmax()) for row in logits]


def our_server(bundle_path: Path, *options: str) -> list[str]:
    """Return the command line of `irv2-serve` on a free port."""
    command = [sys.executable, "-m", "irv2", "serve", str(bundle_path), "--listen", "127.0.0.1:0"]
    return [*command, "--grace-s", "0", *options]


def split_options(text: str) -> list[str]:
    """Split options of `irv2-serve` as a shell does. Raises UsageError for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--server-options {text}", str(error), "closed quotes") from error


@contextmanager
def served(command: Sequence[str]) -> Iterator[Served]:
    """Run a server until the end of the block."""
    process = Served(command)
    try:
        yield process
    finally:
        process.stop()
