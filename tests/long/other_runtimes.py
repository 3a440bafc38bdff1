"""Which exported file runs in which runtime of others, and whether it answers alike.

    irv2-export CKPT --precision fp32,fp16,bf16,int8 --tolerance-top1 5 --max-disagreement 20
    python tests/long/other_runtimes.py CKPT.bundle [--images 100] [--place FOLDER]

Installs each runtime into a folder of its own, with pip or npm, runs every ONNX file of the bundle
on the first images of the built-in sample, and prints a table in Markdown: how many of the best
classes are ours, and the largest difference of a logit. The reference is model.onnx in the
project's own ONNX Runtime. About 10 minutes and 2 GB, with a package index.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from irv2.bundle import Bundle
from irv2.data.dataset import open_split
from irv2.data.samples import resolve_data
from irv2.evaluate import load_batches
from irv2.runners.onnx import OnnxRunner, import_onnxruntime

# Each program gets a model, images as uint8 .npy or raw bytes, and where to write float32 logits.
ONNXRUNTIME = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
np.save(sys.argv[3], session.run(None, {"images": np.load(sys.argv[2])})[0])
"""
OPENVINO = """
import sys, numpy as np, openvino
model = openvino.Core().read_model(sys.argv[1])
options = {"INFERENCE_PRECISION_HINT": sys.argv[4]}
compiled = openvino.Core().compile_model(model, "CPU", options)
np.save(sys.argv[3], compiled(np.load(sys.argv[2]))[0])
"""
OPENCV = """
import sys, cv2, numpy as np
network = cv2.dnn.readNetFromONNX(sys.argv[1])
rows = []
for image in np.load(sys.argv[2]):
    network.setInput(image[None])
    rows.append(network.forward())
np.save(sys.argv[3], np.concatenate(rows).astype(np.float32))
"""
SIMPLIFY = """
import sys, onnx, onnxsim
model, is_same = onnxsim.simplify(onnx.load(sys.argv[1]))
assert is_same
onnx.save(model, sys.argv[3] + ".onnx")
sys.argv[1] = sys.argv[3] + ".onnx"
"""
SLIM = """
import sys, onnx, onnxslim
onnx.save(onnxslim.slim(onnx.load(sys.argv[1])), sys.argv[3] + ".onnx")
sys.argv[1] = sys.argv[3] + ".onnx"
"""
NODE = """
const fs = require("fs"), [model, images, answers, shape, library] = process.argv.slice(1);
const ort = require(library);
(async () => {
  const session = await ort.InferenceSession.create(fs.readFileSync(model));
  const pixels = new Uint8Array(fs.readFileSync(images));
  const tensor = new ort.Tensor("uint8", pixels, JSON.parse(shape));
  const { data } = (await session.run({ images: tensor })).logits;
  fs.writeFileSync(answers, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
})().catch((error) => { console.error(error.message); process.exit(1); });
"""


@dataclass(frozen=True)
class Runtime:
    """One runtime: what to install, and the program that runs a model in it."""

    name: str  # with {} for the version
    packages: tuple[str, ...]
    program: str
    more: tuple[str, ...] = ()  # arguments after model, images and answers


ONNXRUNTIMES = ("onnxruntime==1.15.1", "onnxruntime==1.16.3", "onnxruntime==1.17.3")
RUNTIMES = (
    *(Runtime("onnxruntime {}", (package, "numpy<2"), ONNXRUNTIME) for package in ONNXRUNTIMES),
    Runtime("onnxruntime {}", ("onnxruntime",), ONNXRUNTIME),
    Runtime("onnxruntime-node {}", ("onnxruntime-node",), NODE),
    Runtime("onnxruntime-web {} (WebAssembly)", ("onnxruntime-web",), NODE),
    Runtime("openvino {}, hint f32", ("openvino",), OPENVINO, ("f32",)),
    Runtime("openvino {}, hint bf16", ("openvino",), OPENVINO, ("bf16",)),
    Runtime("OpenCV {} (`cv2.dnn`)", ("opencv-python-headless==4.10.0.84",), OPENCV),
    Runtime("OpenCV {} (`cv2.dnn`)", ("opencv-python-headless<5",), OPENCV),
    Runtime("OpenCV {} (`cv2.dnn`)", ("opencv-python-headless",), OPENCV),
    Runtime("onnxsim {}, then onnxruntime", ("onnxsim", "onnxruntime"), SIMPLIFY + ONNXRUNTIME),
    Runtime("onnxslim {}, then onnxruntime", ("onnxslim", "onnxruntime"), SLIM + ONNXRUNTIME),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--place", type=Path)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    folder = open_split(resolve_data(None), "val", bundle.classes).first(args.images)
    images = np.concatenate([b.images for b in load_batches(folder, bundle.preprocess, 64)])
    import_onnxruntime()
    with OnnxRunner(bundle.path / "model.onnx") as runner:
        ours = np.concatenate([runner.run(images[i : i + 50]) for i in range(0, len(images), 50)])
    files = [a.file for a in bundle.artifacts if a.format == "onnx"]
    with tempfile.TemporaryDirectory() as name:
        place = args.place or Path(name)
        np.save(place / "images.npy", images)
        (place / "images.raw").write_bytes(images.tobytes())
        rows = []
        for runtime in RUNTIMES:
            command, version = install(runtime, place)
            cells = [
                outcome(runtime, command, bundle.path / file, place, images.shape, ours)
                for file in files
            ]
            rows.append((runtime.name.format(version), *cells))
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"The largest logit is {np.abs(ours).max():.0f}.", file=sys.stderr)
    print(tabulate(rows, ("runtime", *files), tablefmt="github", disable_numparse=True))


def install(runtime: Runtime, place: Path) -> tuple[list[str], str]:
    """Install a runtime, unless it is there; its command and its version."""
    package = runtime.packages[0]
    home = place / package
    if runtime.program is NODE:
        if not home.is_dir():
            npm = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts"]
            subprocess.run([*npm, "--prefix", str(home), package], check=True)
        about = home / "node_modules" / package / "package.json"
        return ["node", "-e", runtime.program, "--"], json.loads(about.read_text())["version"]
    python = str(home / "bin" / "python")
    if not home.is_dir():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *runtime.packages], check=True)
    name = re.split("[=<]", package)[0]
    query = f"import importlib.metadata as m; print(m.version('{name}'))"
    found = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True)
    return [python, "-c", runtime.program], found.stdout.strip()


def outcome(
    runtime: Runtime,
    command: list[str],
    model: Path,
    place: Path,
    shape: tuple[int, ...],
    ours: np.ndarray,
) -> str:
    """How many best classes are ours, or why it does not run."""
    answers = place / "answers.npy"
    answers.unlink(missing_ok=True)
    if runtime.program is NODE:
        [package] = runtime.packages
        library = place / package / "node_modules" / package
        arguments = [place / "images.raw", answers, str(list(shape)), library]
    else:
        arguments = [place / "images.npy", answers, *runtime.more]
    done = subprocess.run(
        [*command, str(model), *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        print(runtime.packages[0], model.name, *lines[-3:], sep="\n  ", file=sys.stderr)
        return "-"
    if runtime.program is NODE:
        logits = np.frombuffer(answers.read_bytes(), np.float32).reshape(ours.shape)
    else:
        logits = np.load(answers)
    same = int((logits.argmax(1) == ours.argmax(1)).sum())
    difference = np.abs(logits - ours).max()
    return f"{same}, {difference:.1e}" if difference else f"{same}, 0"


if __name__ == "__main__":
    main()
