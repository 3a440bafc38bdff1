"""`irv2 bench train`: images/s of a training step, against a plain loop and this machine's peak.

The plain loop is like a first script: NCHW, eager, one batch norm over the whole batch, in float32
and under autocast in bfloat16. Ours is the trainer's own step with its groups. The peak is the best
rate of a few of the network's larger convolutions, forward only, in the same run. A step stays
below it because of batch norm, ReLU and concatenation, which move memory, and of convolutions too
small for the machine: only fusing them into the convolutions would help (docs/training.md).
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.nn import functional as F

from irv2.bench.photos import write_photos
from irv2.bench.rounds import Rounds, machine, machine_lock, rate, run_rounds
from irv2.cli.options import FloatRange, device_option, json_option, print_json
from irv2.cli.program import Program
from irv2.data.dataset import ImageFolder, open_split
from irv2.model import inception_resnet_v2
from irv2.model.summary import summarize
from irv2.runners.torch import resolve_device, use_full_float32
from irv2.train.bench.memory import NUM_CLASSES, measure_memory, memory_table, random_batch
from irv2.train.data.loader import load_epoch
from irv2.train.learner.step import DTYPES, Computation, Learner
from irv2.train.processes import Processes
from irv2.train.settings import SETTINGS, Precision, Recipe

PLAIN = "plain fp32"
PLAIN_BF16 = "plain bf16"
# Channels, height = width, kernel: larger convolutions of the 35, 17 and 8 pixel grids.
PEAK_CONVOLUTIONS = ((256, 35, 3), (384, 17, 3), (256, 8, 3), (384, 35, 1))
BACKWARD_AND_FORWARD = 3  # a step's work, in forward passes
NUM_PHOTOS, PHOTO_QUALITY = 48, 97  # as heavy as ImageNet's
# Convolutions between two waits for the device: on a GPU, a wait takes as long as a convolution.
CONVOLUTIONS_PER_CALL = {"cpu": 1, "cuda": 50}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure; `seconds` is the time per case and round, for at least one step."""

    recipe: Recipe
    device: str
    rounds: int
    seconds: float
    compile: bool
    micro_batch: int | None


@click.command(
    cls=Program,
    sections={
        "The step": "batch-size bn-group micro-batch image-size width compile device data",
        "The measurement": "rounds seconds workers wait-steps memory",
    },
)
@click.option("--batch-size", type=click.IntRange(2), default=64, help="Images per step.")
@click.option("--bn-group", type=click.IntRange(2), default=32,
              help="Images that share batch-norm statistics.")  # fmt: skip
@click.option("--micro-batch", type=click.IntRange(2), metavar="IMAGES",
              help="Images per pass through ours.  [default: all]")  # fmt: skip
@click.option("--image-size", type=click.IntRange(75), default=299, metavar="PIXELS",
              help="Side of an image.")  # fmt: skip
@click.option("--width", type=FloatRange(0, 4, min_open=True), default=1.0,
              help="Factor of every channel count.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=5, help="Runs of each case.")
@click.option("--seconds", type=FloatRange(0), default=10.0,
              help="Time of a case in a round; at least one step.")  # fmt: skip
@click.option("--compile", is_flag=True, help="Also measure ours through torch.compile.")
@click.option("--workers", type=click.IntRange(0), default=2, help="Decoding processes.")
@click.option("--wait-steps", type=click.IntRange(1), default=4,
              help="Steps over which waiting for images is measured.")  # fmt: skip
@click.option(
    "--memory",
    is_flag=True,
    help="Measure what --checkpoint-activations saves instead: the peak memory of two "
    "bf16 steps, each case in its own process.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    envvar="IRV2_DATA",
    show_envvar=True,
    help="Images to wait for.  [default: synthetic JPEGs of 500x375]",
)
@device_option
@json_option
def main(
    batch_size: int,
    bn_group: int,
    micro_batch: int | None,
    image_size: int,
    width: float,
    rounds: int,
    seconds: float,
    compile: bool,
    workers: int,
    wait_steps: int,
    memory: bool,
    data: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure training steps of the full network: images/s, percent of the peak, waiting.

    The peak is that of convolutions alone, in the same precision. A step also normalises, rectifies
    and concatenates, which moves memory; fusing these into the convolutions, as --compile does on a
    GPU, brings it closer to the peak.
    """
    recipe = dataclasses.replace(
        SETTINGS["2"],
        batch_size=batch_size,
        bn_group=bn_group,
        image_size=image_size,
        resize=round(328 * image_size / 299),
        width=width,
    )
    plan = Plan(
        recipe=recipe,
        device=resolve_device(device),
        rounds=rounds,
        seconds=seconds,
        compile=compile,
        micro_batch=micro_batch,
    )
    with machine_lock():
        if memory:
            report = measure_memory(recipe, plan.device, micro_batch)
        else:
            report = measure(plan)
            with _images(data) as folder:
                report["data_wait"] = measure_wait(plan, folder, workers, wait_steps)
    if as_json:
        print_json(report)
    else:
        click.echo(memory_table(report) if memory else _table(report))


def measure(plan: Plan) -> dict[str, Any]:
    """Measure the rate of every case, its ratio to the plain loop and its percent of the peak."""
    use_full_float32()
    before = machine()
    cases: dict[str, Callable[[], float]] = {
        PLAIN: _timed(plain_loop(plan, torch.float32), plan.seconds),
        PLAIN_BF16: _timed(plain_loop(plan, torch.bfloat16), plan.seconds),
        "ours fp32": _timed(our_step(plan, "fp32"), plan.seconds),
        "ours bf16": _timed(our_step(plan, "bf16"), plan.seconds),
    }
    if plan.compile:
        cases["ours bf16 compiled"] = _timed(our_step(plan, "bf16", True), plan.seconds)
    for case in cases.values():
        case()  # the first steps allocate, choose algorithms, compile
    peaks = {
        f"{name} {side}x{side} {kernel}x{kernel} x{channels}": _timed(
            convolution(channels, side, kernel, dtype, plan.device), min(1.0, plan.seconds)
        )
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for channels, side, kernel in PEAK_CONVOLUTIONS
    }
    found = run_rounds({**cases, **peaks}, plan.rounds, aa=PLAIN, title="bench train")
    return _report(plan, before, found, list(cases), list(peaks))


def plain_loop(plan: Plan, dtype: torch.dtype) -> Callable[[], int]:
    """Return a plain loop's step, under autocast unless float32; it returns its images."""
    recipe, device = plan.recipe, torch.device(plan.device)
    model = inception_resnet_v2(NUM_CLASSES, recipe.blocks, recipe.width).to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    side, num = recipe.image_size, recipe.batch_size
    images = torch.rand(num, 3, side, side, device=device)
    labels = torch.arange(num, device=device) % NUM_CLASSES

    def step() -> int:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # waits for the device
        return num

    return step


def our_step(plan: Plan, precision: Precision, compile: bool = False) -> Callable[[], int]:
    """Return the trainer's step, including the images' colouring; it returns its images."""
    learner = _learner(plan, precision, compile)
    batch = random_batch(plan.recipe)

    def step() -> int:
        learner.step(1, batch, len(batch.labels)).cpu()  # waits for the device
        return len(batch.labels)

    return step


def _learner(plan: Plan, precision: Precision, compile: bool = False) -> Learner:
    recipe = dataclasses.replace(plan.recipe, precision=precision)
    computation = Computation(device=plan.device, compile=compile, micro_batch=plan.micro_batch)
    computation.check(recipe, Processes())
    model = inception_resnet_v2(NUM_CLASSES, recipe.blocks, recipe.width).train()
    return Learner(model, recipe, computation, Processes())


def convolution(
    channels: int, side: int, kernel: int, dtype: torch.dtype, device: str
) -> Callable[[], int]:
    """Return a step of forward convolutions of 32 images each; it returns its flop."""
    kind: dict[str, Any] = {"dtype": dtype, "device": device}
    last = torch.channels_last
    images = torch.rand(32, channels, side, side, **kind).contiguous(memory_format=last)
    weight = torch.rand(channels, channels, kernel, kernel, **kind).contiguous(memory_format=last)
    num = CONVOLUTIONS_PER_CALL[device]
    flop = 2 * images.numel() * channels * kernel**2

    @torch.inference_mode()
    def step() -> int:
        for _ in range(num):
            F.conv2d(images, weight, padding=kernel // 2)
        if device == "cuda":
            torch.cuda.synchronize()
        return num * flop

    return step


@contextmanager
def _images(data: Path | None) -> Iterator[ImageFolder]:
    """Open the training images of `data`, or synthetic photographs."""
    if data is not None:
        yield open_split(data, "train")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder) / "train" / "photos", NUM_PHOTOS, PHOTO_QUALITY)
        yield open_split(Path(folder), "train")


def measure_wait(plan: Plan, folder: ImageFolder, workers: int, num_steps: int) -> dict[str, Any]:
    """Measure the percentage of time that bf16 training waits for images after its first step."""
    learner = _learner(plan, "bf16")
    # If there are too few images, they are read again and again.
    needed = np.resize(np.arange(len(folder)), (num_steps + 1) * plan.recipe.batch_size)
    batches = load_epoch(
        folder.subset(needed.tolist()),
        plan.recipe,
        1,
        start=0,
        workers=workers,
        bad_images="error",
        device=torch.device(plan.device),
    )
    waited, started, images = 0.0, 0.0, 0
    for step in range(num_steps + 1):
        asked = time.perf_counter()
        _, batch = next(batches)
        got = time.perf_counter()
        learner.step(step + 1, batch, len(batch.labels)).cpu()
        if step == 0:  # includes the start of the workers
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
        "data": str(folder.data),
    }


def _timed(step: Callable[[], int], seconds: float) -> Callable[[], float]:
    return lambda: rate(step, seconds)


def _report(
    plan: Plan, before: dict[str, Any], found: Rounds, cases: list[str], peaks: list[str]
) -> dict[str, Any]:
    recipe = plan.recipe
    rows = summarize(recipe.model_config(NUM_CLASSES), recipe.image_size)
    flop = BACKWARD_AND_FORWARD * sum(row.flop for row in rows)
    peak = {
        name: max(found.median(case) for case in peaks if case.startswith(name))
        for name in DTYPES
        if any(case.startswith(name) for case in peaks)
    }
    return {
        "machine": {**before, "device": plan.device, "threads": torch.get_num_threads()},
        "compared": {
            "batch_size": recipe.batch_size,
            "bn_group": recipe.bn_group,
            "micro_batch": plan.micro_batch,
            "image_size": recipe.image_size,
            "width": recipe.width,
            "rounds": plan.rounds,
            "seconds": plan.seconds,
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
        # Whether the trainer's bfloat16 uses the machine as well as a plain loop's does.
        "ours_over_plain_bf16": found.ratio("ours bf16", PLAIN_BF16).to_json(),
        "aa": found.aa(PLAIN).to_json(),
        "void": found.is_void(PLAIN),
    }


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
    ratio = report["ours_over_plain_bf16"]
    lines.append(
        f"ours bf16 over plain bf16: {ratio['ratio']} ({ratio['lower_95']}-{ratio['upper_95']})"
    )
    lines.append(f"convolution peak, GFLOP/s: {report['peak_gflop_per_s']}")
    lines.append(f"waiting for images: {report['data_wait']['percent']} % of bf16 training")
    if report["void"]:
        lines.append(f"void: the plain loop differs from itself: {report['aa']}")
    return "\n".join(lines)
