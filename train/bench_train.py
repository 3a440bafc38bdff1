"""`irv2 bench train`: images/s of a training step, against a plain loop and this machine's peak.

The plain loop is what a first script would be: float32, NCHW, eager, one batch norm over the whole
batch. Ours is the trainer's own step with its groups. The peak is the best rate of a few of the
network's larger convolutions, forward, in the same run.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional as F

from irv2.dataset import open_split
from irv2.measure import Rounds, machine, machine_lock, rate, run_rounds
from irv2.model import inception_resnet_v2
from irv2.options import Program, data_option, device_option, json_option, print_json
from irv2.runners.torch import resolve_device, use_full_float32
from irv2.samples import resolve_data
from irv2.summary import summarize
from train.loader import Batch, load_epoch
from train.processes import Processes
from train.settings import SETTINGS, Precision, Recipe
from train.step import DTYPES, Computation, Learner

PLAIN = "plain fp32"
NUM_CLASSES = 1000
# Channels, height = width, kernel: larger convolutions of the grids of 35, 17 and 8 pixels.
PEAK_CONVOLUTIONS = ((256, 35, 3), (384, 17, 3), (256, 8, 3), (384, 35, 1))
BACKWARD_AND_FORWARD = 3  # forward passes' worth of work in a step


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure; `seconds` per case and round, at least one step."""

    recipe: Recipe
    device: str
    rounds: int
    seconds: float
    compile: bool
    micro_batch: int | None


@click.command(cls=Program)
@click.option("--batch-size", type=click.IntRange(2), default=64, help="Images per step.")
@click.option("--bn-group", type=click.IntRange(2), default=32,
              help="Images that share batch-norm statistics.")  # fmt: skip
@click.option("--micro-batch", type=click.IntRange(2), metavar="IMAGES",
              help="Images at a time through ours.  [default: all]")  # fmt: skip
@click.option("--image-size", type=click.IntRange(75), default=299, metavar="PIXELS",
              help="Side of an image.")  # fmt: skip
@click.option("--width", type=click.FloatRange(0, 4, min_open=True), default=1.0,
              help="Factor of every channel count.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=5, help="Times each case runs.")
@click.option("--seconds", type=click.FloatRange(0), default=10.0,
              help="Time of a case in a round; one step at least.")  # fmt: skip
@click.option("--compile", is_flag=True, help="Also measure ours through torch.compile.")
@click.option("--workers", type=click.IntRange(0), default=2, help="Decoding processes.")
@click.option("--wait-steps", type=click.IntRange(1), default=4,
              help="Steps over which waiting for images is measured.")  # fmt: skip
@data_option
@device_option
@json_option
def main(
    batch_size: int, bn_group: int, micro_batch: int | None, image_size: int, width: float,
    rounds: int, seconds: float, compile: bool, workers: int, wait_steps: int, data: Path | None,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Measure training steps of the full network."""
    recipe = dataclasses.replace(
        SETTINGS["2"], batch_size=batch_size, bn_group=bn_group, image_size=image_size,
        resize=round(328 * image_size / 299), width=width,
    )  # fmt: skip
    options = Options(
        recipe=recipe, device=resolve_device(device), rounds=rounds, seconds=seconds,
        compile=compile, micro_batch=micro_batch,
    )  # fmt: skip
    with machine_lock():
        report = measure(options)
        report["data_wait"] = measure_wait(options, resolve_data(data), workers, wait_steps)
    print_json(report) if as_json else click.echo(_table(report))


def measure(options: Options) -> dict[str, Any]:
    """Rates of every case, their ratios to the plain loop, and shares of the peak."""
    use_full_float32()
    before = machine()
    cases: dict[str, Callable[[], float]] = {
        PLAIN: _timed(plain_loop(options), options.seconds),
        "ours fp32": _timed(our_step(options, "fp32"), options.seconds),
        "ours bf16": _timed(our_step(options, "bf16"), options.seconds),
    }
    if options.compile:
        cases["ours bf16 compiled"] = _timed(our_step(options, "bf16", True), options.seconds)
    for case in cases.values():
        case()  # first steps allocate, choose algorithms, compile
    peaks = {
        f"{name} {side}x{side} {kernel}x{kernel} x{channels}": _timed(
            convolution(channels, side, kernel, dtype, options.device), min(1.0, options.seconds)
        )
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for channels, side, kernel in PEAK_CONVOLUTIONS
    }
    found = run_rounds({**cases, **peaks}, options.rounds, aa=PLAIN, title="bench train")
    return _report(options, before, found, list(cases), list(peaks))


def plain_loop(options: Options) -> Callable[[], int]:
    """One step of a plain loop; returns its images."""
    recipe, device = options.recipe, torch.device(options.device)
    model = inception_resnet_v2(NUM_CLASSES, recipe.blocks, recipe.width).to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip
    side, num = recipe.image_size, recipe.batch_size
    images = torch.rand(num, 3, side, side, device=device)
    labels = torch.arange(num, device=device) % NUM_CLASSES

    def step() -> int:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # waits for the device
        return num

    return step


def our_step(options: Options, precision: Precision, compile: bool = False) -> Callable[[], int]:
    """One step of the trainer, colouring of the images included; returns its images."""
    learner = _learner(options, precision, compile)
    batch = _batch(options.recipe)

    def step() -> int:
        learner.step(1, batch, len(batch.labels)).cpu()  # waits for the device
        return len(batch.labels)

    return step


def _learner(options: Options, precision: Precision, compile: bool = False) -> Learner:
    recipe = dataclasses.replace(options.recipe, precision=precision)
    computation = Computation(
        device=options.device, compile=compile, micro_batch=options.micro_batch
    )
    computation.check(recipe, Processes())
    model = inception_resnet_v2(NUM_CLASSES, recipe.blocks, recipe.width).train()
    return Learner(model, recipe, computation, Processes())


def _batch(recipe: Recipe) -> Batch:
    num, side = recipe.batch_size, recipe.image_size
    return Batch(
        torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8),
        (torch.eye(3, 4) / 64).expand(num, 3, 4),
        torch.arange(num) % 2 == 0,
        torch.arange(num) % NUM_CLASSES,
    )


def convolution(
    channels: int, side: int, kernel: int, dtype: torch.dtype, device: str
) -> Callable[[], int]:  # fmt: skip
    """One forward convolution of 32 images; returns its floating-point operations."""
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    last = torch.channels_last
    images = torch.rand(32, channels, side, side, **options).contiguous(memory_format=last)
    weight = torch.rand(channels, channels, kernel, kernel, **options)
    weight = weight.contiguous(memory_format=last)
    flop = 2 * images.numel() * channels * kernel**2

    @torch.inference_mode()
    def step() -> int:
        F.conv2d(images, weight, padding=kernel // 2)
        if device == "cuda":
            torch.cuda.synchronize()
        return flop

    return step


def measure_wait(options: Options, data: Path, workers: int, num_steps: int) -> dict[str, Any]:
    """The share of time that bf16 training waits for real images, after its first step."""
    folder = open_split(data, "train")
    learner = _learner(options, "bf16")
    batches = load_epoch(
        folder, options.recipe, 1, start=0, workers=workers, bad_images="error",
        device=torch.device(options.device),
    )  # fmt: skip
    waited, started, images = 0.0, 0.0, 0
    for number in range(num_steps + 1):
        asked = time.perf_counter()
        _, batch = next(batches)
        got = time.perf_counter()
        learner.step(number + 1, batch, len(batch.labels)).cpu()
        if number == 0:  # the workers' start
            started = time.perf_counter()
        else:
            waited += got - asked
            images += len(batch.labels)
    elapsed = time.perf_counter() - started
    return {
        "percent": round(100 * waited / elapsed, 2),
        "images_per_s": round(images / elapsed, 2),
        "steps": num_steps,
        "workers": workers,
        "data": str(data),
    }


def _timed(step: Callable[[], int], seconds: float) -> Callable[[], float]:
    return lambda: rate(step, seconds)


def _report(
    options: Options, before: dict[str, Any], found: Rounds, cases: list[str], peaks: list[str]
) -> dict[str, Any]:  # fmt: skip
    recipe = options.recipe
    model = inception_resnet_v2(NUM_CLASSES, recipe.blocks, recipe.width)
    flop = BACKWARD_AND_FORWARD * sum(
        row.flop for row in summarize(model, recipe.image_size)
    )  # fmt: skip
    peak = {
        name: max(found.median(case) for case in peaks if case.startswith(name))
        for name in DTYPES
        if any(case.startswith(name) for case in peaks)
    }
    return {
        "machine": {**before, "device": options.device, "threads": torch.get_num_threads()},
        "compared": {
            "batch_size": recipe.batch_size, "bn_group": recipe.bn_group,
            "micro_batch": options.micro_batch, "image_size": recipe.image_size,
            "width": recipe.width, "rounds": options.rounds, "seconds": options.seconds,
        },
        "peak_gflop_per_s": {name: round(value / 1e9, 1) for name, value in peak.items()},
        "gflop_per_image": round(flop / 1e9, 2),
        "cases": {
            case: {
                "images_per_s": round(found.median(case), 3),
                "percent_of_peak": round(100 * found.median(case) * flop / peak[_kind(case)], 1),
                "over_plain": found.ratio(case, PLAIN).to_json(),
            }
            for case in cases
        },
        "aa": found.aa(PLAIN).to_json(),
        "void": found.is_void(PLAIN),
    }  # fmt: skip


def _kind(case: str) -> str:
    return next(name for name in DTYPES if name in case)


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'case':20} {'images/s':>9} {'of peak':>8} {'over plain (95 %)':>22}"]
    for case, row in report["cases"].items():
        ratio = row["over_plain"]
        lines.append(
            f"{case:20} {row['images_per_s']:9.2f} {row['percent_of_peak']:6.1f} % "
            f"{ratio['ratio']:8.3f} ({ratio['lower_95']:.3f}-{ratio['upper_95']:.3f})"
        )
    lines.append(f"convolution peak, GFLOP/s: {report['peak_gflop_per_s']}")
    lines.append(f"waiting for images: {report['data_wait']['percent']} % of bf16 training")
    if report["void"]:
        lines.append(f"void: the plain loop differs from itself: {report['aa']}")
    return "\n".join(lines)
