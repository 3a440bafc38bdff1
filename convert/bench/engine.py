"""`irv2 bench engine`: images/s of each precision on each backend of this CPU, and their limits.

Without a bundle: the published network with random weights, exported on the spot, beside PyTorch
in eager mode. The limit of a precision is the fastest library at nothing but large convolutions in
it, 3x3 over 256 channels of 35x35, as this network's heaviest; it is counted in images of the
network by their operations.
"""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from tabulate import tabulate
from torch.nn import functional as F

from irv2.bench.photos import write_photos
from irv2.bench.rounds import AA_SUFFIX, Rounds, machine, machine_lock, rate, run_rounds
from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.convert.bench.peaks import peak_cases
from irv2.convert.candidate import ExportOptions, make_candidate
from irv2.convert.onnx.calibrate import DEFAULT_IMAGES
from irv2.data.dataset import open_split
from irv2.images.preprocess import Preprocess
from irv2.manifest import ONNX_FILE, Artifact, Precision
from irv2.model import inception_resnet_v2
from irv2.runners.base import CPU_MAX_BATCH, Runner
from irv2.runners.choose import INT8_CPU, backends, open_runner
from irv2.runners.speed import rate_of
from irv2.runners.torch import TorchRunner
from irv2.system.machine import num_cores
from irv2.system.memory import resident_bytes

BF16_FILE = "model.bf16.onnx"
FP32 = f"{ONNX_FILE} on onnxruntime-cpu"
INT8 = f"{INT8_CPU} on onnxruntime-cpu"
BF16 = f"{BF16_FILE} on openvino-cpu"
EAGER = "torch eager NCHW"
ALONE = ", alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCost:
    """What making float32 and int8 files took, the gate apart, in a process of its own."""

    seconds: float
    peak_rss_gb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What an engine took until its first batch was answered, beside those opened before."""

    seconds: float  # to open: OpenVINO compiles, ONNX Runtime optimises
    mb: float


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
        runners: dict[str, Runner] = {}
        if bundle is None:
            checkpoint, artifacts, cost = _export_full_network(Path(folder))
            runners[EAGER] = TorchRunner(checkpoint)
        else:
            artifacts = [a for a in Bundle.open(bundle).artifacts if a.format == "onnx"]
        place = bundle or Path(folder)
        costs: dict[str, Opening] = {}
        for artifact in artifacts:
            for backend in backends(artifact):
                name = f"{artifact.file} on {backend}"
                if backend.endswith("-cpu"):
                    path = place / artifact.file
                    open_it = partial(open_runner, path, artifact, backend, threads)
                    runners[name], costs[name] = _opened(open_it)
        for runner in runners.values():
            stack.enter_context(runner)
        flop = flop_per_image(onnx.load(place / ONNX_FILE))
        cases: dict[str, Callable[[], float]] = {
            name: partial(rate_of, runner, batch_size, seconds) for name, runner in runners.items()
        }
        alone = {name: partial(rate_alone, runner, seconds) for name, runner in runners.items()}
        peaks = peak_cases(batch_size, threads, flop, seconds)
        cases |= {f"{name}{ALONE}": case for name, case in alone.items()}
        cases |= {name: case for name, (_, case) in peaks.items()}
        for case in cases.values():
            case()  # allocates, and packs weights
        measured = run_rounds(cases, rounds, aa=FP32, title="engines")
    precisions = {name: precision for name, (precision, _) in peaks.items()}
    of = {f"{a.file} on {b}": a.precision for a in artifacts for b in backends(a)}
    result = _result(measured, of, precisions, flop) | {
        "opened": {name: asdict(opening) for name, opening in costs.items()},
        "batch_size": batch_size,
        "threads": threads,
        "machine": before,
        "export": None if cost is None else asdict(cost),
    }
    result["bars"] = _bars(result)
    print_json(result) if as_json else click.echo(_table(result))


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


def _opened(open_it: Callable[[], Runner]) -> tuple[Runner, Opening]:
    """Open a runner and run it once, which allocates; what that took."""
    started, before = time.perf_counter(), resident_bytes()
    runner = open_it()
    seconds = time.perf_counter() - started
    rate_of(runner, CPU_MAX_BATCH, 0)
    return runner, Opening(seconds=round(seconds, 2), mb=round((resident_bytes() - before) / 1e6))


def rate_alone(runner: Runner, seconds: float) -> float:
    """Images per second, one after the other, with nothing beside them."""
    image = np.zeros((1, runner.image_size, runner.image_size, 3), np.uint8)
    return rate(lambda: len(runner.run(image)), seconds)


def _export_full_network(folder: Path) -> tuple[Checkpoint, list[Artifact], ExportCost]:
    checkpoint = _random_checkpoint()
    # All of one class: random weights would seem to lose by every change of a meaningless answer.
    write_photos(folder / "data" / "train" / "all", DEFAULT_IMAGES, quality=90)
    write_photos(folder / "data" / "val" / "all", 1, quality=89)  # no copy of a training image
    checkpoint.save(folder / "random.pt")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return checkpoint, *pool.submit(export_in_folder, folder).result()


def export_in_folder(folder: Path) -> tuple[list[Artifact], ExportCost]:
    """Time the conversion of `folder`/random.pt with `folder`/data, and leave the files there."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the user's may know the calibration
    started = time.perf_counter()
    checkpoint = Checkpoint.load(folder / "random.pt")
    options = ExportOptions(precisions=("fp32", "bf16", "int8"))
    val = open_split(folder / "data", "val")
    candidate = make_candidate(checkpoint, "0" * 64, folder, options, val)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost = ExportCost(
        seconds=round(time.perf_counter() - started, 1), peak_rss_gb=round(peak_bytes / 1e9, 2)
    )
    return candidate.artifacts, cost


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


def _result(
    measured: Rounds, engines: dict[str, Precision], peaks: dict[str, Precision], flop: float
) -> dict[str, Any]:
    names = [name for name in measured.rates if AA_SUFFIX not in name]
    pairs = [(name, FP32) for name in engines if name in names and name != FP32]
    pairs += [(INT8, EAGER)] if EAGER in names else []
    for name, precision in engines.items():
        of_it = [peak for peak in peaks if peaks[peak] == precision]
        if name in names and of_it:
            pairs.append((name, max(of_it, key=measured.median)))
    return {
        "images_per_s": {
            name: round(measured.median(name), 2) for name in names if not name.endswith(ALONE)
        },
        "alone_ms": {
            name.removesuffix(ALONE): round(1e3 / measured.median(name), 1)
            for name in names
            if name.endswith(ALONE)
        },
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
    wanted = [
        (f"{INT8} / {FP32}", "at least 3"),
        (f"{INT8} / {EAGER}", "at least 4"),
        (f"{BF16} / {FP32}", "at least 3 with AMX, 1.5 with AVX512-BF16"),
    ]
    wanted += [
        (name, "at least 0.85") for name in ratios if name.startswith(f"{FP32} / ")
    ]  # of the peak
    bars = [(what, bar, ratios.get(what)) for what, bar in wanted]
    bars += [
        ("export, seconds", "under 120", export.get("seconds")),
        ("export, GB", "under 3", export.get("peak_rss_gb")),
    ]
    return [{"what": what, "wanted": bar, "measured": found} for what, bar, found in bars]


def _table(result: dict[str, Any]) -> str:
    rows = [
        (
            name,
            rate,
            result["alone_ms"].get(name),
            *result["opened"].get(name, {"seconds": None, "mb": None}).values(),
        )
        for name, rate in result["images_per_s"].items()
    ]
    headers = ("case", "images/s", "ms alone", "s to open", "MB")
    rates = tabulate(rows, headers, floatfmt=".2f")
    ratios = tabulate(
        [(name, *ratio.values()) for name, ratio in result["ratios"].items()],
        ("ratio", "median", "lower 95 %", "upper 95 %"),
    )
    lines = [rates, "", ratios, "", f"A/A {result['aa']['ratio']}"]
    if result["void"]:
        lines.append("void: a case differs from itself; repeat on a quiet machine")
    bars = [bar.values() for bar in result["bars"]]
    titles = ("the full network", "wanted", "measured")
    return "\n".join([*lines, "", tabulate(bars, titles, missingval="not measured")])
