"""`irv2 bench engine`: images/s of each precision on this CPU, and how near to its limit they are.

Without a bundle: the published network with random weights, exported on the spot, beside PyTorch
in eager mode. The limit is the faster of ONNX Runtime and PyTorch (oneDNN) at nothing but large
float32 convolutions, 3x3 over 256 channels of 35x35, as this network's heaviest; it is counted in
images of the network by their floating-point operations.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from tabulate import tabulate
from torch.nn import functional as F

from irv2.bench.photos import write_photos
from irv2.bench.rounds import Rounds, machine, machine_lock, rate, run_rounds
from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.convert.candidate import ExportOptions, make_candidate
from irv2.convert.onnx.calibrate import DEFAULT_IMAGES
from irv2.data.dataset import open_split
from irv2.images.preprocess import Preprocess
from irv2.manifest import ONNX_FILE
from irv2.model import inception_resnet_v2
from irv2.runners.base import Runner
from irv2.runners.choose import INT8_CPU
from irv2.runners.onnx import OnnxRunner, import_onnxruntime
from irv2.runners.torch import TorchRunner
from irv2.system.machine import num_cores

FP32, EAGER = ONNX_FILE, "torch eager NCHW"
ORT_PEAK, TORCH_PEAK = "onnxruntime convolutions", "torch convolutions"
CHANNELS, SIDE, NUM_CONVOLUTIONS = 256, 35, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCost:
    """What making float32 and int8 files took, the gate apart, in a process of its own."""

    seconds: float
    peak_rss_gb: float


@click.command(cls=Program)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path),
                required=False)  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=9, help="Times that each case is run.")
@click.option("--seconds", type=FloatRange(0.01), default=5.0, help="Length of one run.")
@click.option("--batch-size", type=click.IntRange(1, 64), default=8, help="Images per batch.")
@click.option("--threads", type=click.IntRange(1), default=num_cores,
              show_default="one per core", help="Threads of every engine.")  # fmt: skip
@json_option
def main(
    bundle: Path | None, rounds: int, seconds: float, batch_size: int, threads: int, as_json: bool
) -> None:
    """Measure the ONNX files of BUNDLE, or of the full network, on this CPU."""
    torch.set_num_threads(threads)
    with machine_lock(), tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        before, cost = machine(), None
        if bundle is None:
            checkpoint, cost = _export_full_network(Path(folder))
            runners: dict[str, Runner] = {
                name: OnnxRunner(Path(folder) / name, num_threads=threads)
                for name in (FP32, INT8_CPU)
            }
            runners[EAGER] = TorchRunner(checkpoint)
        else:
            runners = _runners(Bundle.open(bundle), threads)
        for runner in runners.values():
            stack.enter_context(runner)
        flop = flop_per_image(onnx.load((bundle or Path(folder)) / FP32))
        cases = {name: _case(runner, batch_size, seconds) for name, runner in runners.items()}
        cases |= _peaks(batch_size, threads, flop, seconds)
        measured = run_rounds(cases, rounds, aa=FP32, title="engines")
    result = _result(measured, flop) | {
        "batch_size": batch_size,
        "threads": threads,
        "machine": before,
        "export": None if cost is None else asdict(cost),
    }
    result["bars"] = _bars(result)
    print_json(result) if as_json else click.echo(_table(result))


def _runners(bundle: Bundle, threads: int) -> dict[str, Runner]:
    return {
        artifact.file: OnnxRunner(bundle.path / artifact.file, num_threads=threads)
        for artifact in bundle.manifest.artifacts
        if artifact.format == "onnx" and artifact.precision != "bf16"
    }


def _case(runner: Runner, batch_size: int, seconds: float) -> Callable[[], float]:
    shape = (batch_size, runner.image_size, runner.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    runner.run(images)  # allocates, and packs weights
    return lambda: rate(lambda: len(runner.run(images)), seconds)


def _peaks(
    batch_size: int, threads: int, flop_of_image: float, seconds: float
) -> dict[str, Callable[[], float]]:
    """Nothing but convolutions, by both libraries; each call counts as images of the network."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, CHANNELS, SIDE, SIDE)).astype(np.float32)
    weight = rng.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / (3 * CHANNELS**0.5)
    flop: float = NUM_CONVOLUTIONS * 2 * weight.size * SIDE * SIDE * batch_size
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        _convolutions(weight).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x, w = torch.from_numpy(images), torch.from_numpy(weight)

    def by_onnxruntime() -> int:
        session.run(None, {"images": images})
        return 1

    def by_torch() -> int:
        y = x
        with torch.inference_mode():
            for _ in range(NUM_CONVOLUTIONS):
                y = F.conv2d(y, w, padding=1)
        return 1

    def images_per_s(work: Callable[[], int]) -> float:
        work()
        return rate(work, seconds) * flop / flop_of_image

    return {
        ORT_PEAK: lambda: images_per_s(by_onnxruntime),
        TORCH_PEAK: lambda: images_per_s(by_torch),
    }


def _convolutions(weight: np.ndarray[Any, np.dtype[np.float32]]) -> onnx.ModelProto:
    names = ["images", *(f"layer{i}" for i in range(NUM_CONVOLUTIONS))]
    nodes = [
        helper.make_node("Conv", [before, "weight"], [after], pads=[1, 1, 1, 1])
        for before, after in pairwise(names)
    ]
    shape: list[str | int | None] = ["N", CHANNELS, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def flop_per_image(model: onnx.ModelProto) -> float:
    """Of the convolutions, a multiply-add counted as two: 18.4e9 for the full network."""
    weights = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    places = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][2:]
        for value in model.graph.value_info
    }
    return sum(
        2.0 * weights[node.input[1]] * float(np.prod(places[node.output[0]]))
        for node in model.graph.node
        if node.op_type == "Conv"
    )


def _export_full_network(folder: Path) -> tuple[Checkpoint, ExportCost]:
    checkpoint = _random_checkpoint()
    # All of one class: random weights would seem to lose by every change of a meaningless answer.
    write_photos(folder / "data" / "train" / "all", DEFAULT_IMAGES, quality=90)
    write_photos(folder / "data" / "val" / "all", 1, quality=89)  # no copy of a training image
    checkpoint.save(folder / "random.pt")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return checkpoint, pool.submit(export_in_folder, folder).result()


def export_in_folder(folder: Path) -> ExportCost:
    """Time the conversion of `folder`/random.pt with `folder`/data, and leave the files there."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the user's may know the calibration
    started = time.perf_counter()
    checkpoint = Checkpoint.load(folder / "random.pt")
    options = ExportOptions(precisions=("fp32", "int8"))
    make_candidate(checkpoint, "0" * 64, folder, options, open_split(folder / "data", "val"))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ExportCost(
        seconds=round(time.perf_counter() - started, 1), peak_rss_gb=round(peak_bytes / 1e9, 2)
    )


def _random_checkpoint() -> Checkpoint:
    """Statistics from one batch of noise, so that activations have a trained network's size."""
    torch.manual_seed(0)
    model = inception_resnet_v2().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
    with torch.no_grad():
        model(F.interpolate(torch.randn(4, 3, 40, 40), 299, mode="bicubic"))
    return Checkpoint(
        model=model.config,
        state_dict=model.state_dict(),
        classes=[f"{i}" for i in range(1000)],
        setting="none",
        epoch=0,
        step=0,
        preprocess=Preprocess(),
    )


def _result(measured: Rounds, flop: float) -> dict[str, Any]:
    names = [name for name in measured.rates if "again" not in name]
    peak = max((ORT_PEAK, TORCH_PEAK), key=measured.median)
    pairs = [(name, FP32) for name in names if name not in (FP32, EAGER, ORT_PEAK, TORCH_PEAK)]
    pairs += [(INT8_CPU, EAGER)] if EAGER in names and INT8_CPU in names else []
    pairs += [(FP32, peak)]
    return {
        "images_per_s": {name: round(measured.median(name), 2) for name in names},
        "gflop_per_image": round(flop / 1e9, 2),
        "ratios": {
            f"{name} / {base}": measured.ratio(name, base).to_json() for name, base in pairs
        },
        "aa": measured.aa(FP32).to_json(),
        "void": measured.is_void(FP32),
    }


def _bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the full network has to reach, and what was measured here; None if nothing was."""
    ratios = {name: ratio["ratio"] for name, ratio in result["ratios"].items()}
    export = result["export"] or {}
    [of_peak] = [name for name in ratios if name.startswith(f"{FP32} / ")]
    bars = [
        (f"{INT8_CPU} / {FP32}", "at least 3", ratios.get(f"{INT8_CPU} / {FP32}")),
        (f"{INT8_CPU} / {EAGER}", "at least 4", ratios.get(f"{INT8_CPU} / {EAGER}")),
        (of_peak, "at least 0.85", ratios[of_peak]),
        ("export, seconds", "under 120", export.get("seconds")),
        ("export, GB", "under 3", export.get("peak_rss_gb")),
    ]
    return [
        {"what": what, "wanted": wanted, "measured": measured} for what, wanted, measured in bars
    ]


def _table(result: dict[str, Any]) -> str:
    rates = tabulate(result["images_per_s"].items(), ("case", "images/s"), floatfmt=".2f")
    ratios = tabulate(
        [(name, *ratio.values()) for name, ratio in result["ratios"].items()],
        ("ratio", "median", "lower 95 %", "upper 95 %"),
    )
    lines = [rates, "", ratios, "", f"A/A {result['aa']['ratio']}"]
    if result["void"]:
        lines.append("void: a case differs from itself; repeat on a quiet machine")
    bars = [bar.values() for bar in result["bars"]]
    headers = ("the full network", "wanted", "measured")
    return "\n".join([*lines, "", tabulate(bars, headers, missingval="not measured")])
