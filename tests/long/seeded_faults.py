"""Proof that the gate works: seeded faults, which of them it catches, and at how many images.

    python tests/long/seeded_faults.py CHECKPOINT [--data DIR] [--stale CHECKPOINT]
                                       [--bundle BUNDLE] [--tinted] [--no-faults]
                                       [--backend onnxruntime-cpu|openvino-cpu]
                                       [--honest 100 [--limit 3000]]

Prints tables in Markdown, as in docs/gate.md. Every fault is judged by fp32's tolerance and, as
the kindest, by int8's; where the gate as it was before 2026-11-30 said otherwise, its verdict comes
first. `--tinted` colours the images, since swapped channels do not show on grey ones. `--stale`
gives the older weights. int8 is calibrated as an export does it. `--backend` runs the models; bf16,
which ONNX Runtime does not compute on a CPU, is then computed by torch. `--bundle` adds the real
artefacts of an export of CHECKPOINT: how many decisions each changes. `--honest N` exports N
networks in every precision, each the checkpoint with noise of its own on all weights, and counts
the verdicts on the first `--limit` images; `--no-faults` leaves out the rest.
"""

import argparse
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import faults
import numpy as np
import onnx
import torch
from tabulate import tabulate
from torch import Tensor, nn

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.convert.gate import invariance
from irv2.convert.gate.limits import verdict
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.tolerance import tolerance_for
from irv2.convert.gate.verdict import judge
from irv2.convert.onnx.calibrate import CalibrationOptions, calibrate, choose_images
from irv2.convert.onnx.float32 import write_onnx
from irv2.convert.onnx.half import to_half
from irv2.convert.onnx.int8 import quantize
from irv2.data.dataset import open_split
from irv2.data.samples import is_sample, resolve_data
from irv2.evaluate import load_batches
from irv2.ledger import Predictions
from irv2.manifest import Parity, Precision, Verdict
from irv2.model.fold import fold
from irv2.runners.base import Runner
from irv2.runners.choose import backends, open_runner
from irv2.runners.onnx import OnnxRunner
from irv2.runners.openvino import OpenVinoRunner
from irv2.runners.torch import TorchRunner
from irv2.system.progress import progress

Open = Callable[[Path, Precision], Runner]
RUNNERS: dict[str, Open] = {
    "onnxruntime-cpu": lambda path, precision: OnnxRunner(path),
    "openvino-cpu": OpenVinoRunner,
}
NUMS = (100, 360, 1000, 3000, 10_000)
VERDICTS = ("passed", "too_few_images", "failed")
LETTERS = {"passed": "P", "failed": "F", "too_few_images": "?"}
BATCH = 32


@dataclass(frozen=True)
class Images:
    """All evaluation images in memory, in an order in which every beginning has all classes."""

    pixels: np.ndarray  # uint8 (n, S, S, 3)
    labels: np.ndarray
    sha256: tuple[str, ...]
    sample: bool

    def first(self, limit: int | None) -> "Images":
        """Return the beginning of them."""
        return replace(
            self,
            pixels=self.pixels[:limit],
            labels=self.labels[:limit],
            sha256=self.sha256[:limit],
        )

    def ask(self, runner: Runner) -> Predictions:
        """One runner's answers."""
        starts = range(0, len(self.pixels), BATCH)
        rows = [runner.run(self.pixels[start : start + BATCH]) for start in starts]
        names = ("",) * len(self.sha256)
        return Predictions(names, self.sha256, self.labels, np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--stale", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--honest", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tinted", action="store_true")
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--backend", choices=RUNNERS, default="onnxruntime-cpu")
    args = parser.parse_args()
    checkpoint, data = Checkpoint.load(args.checkpoint), resolve_data(args.data)
    open_on = RUNNERS[args.backend]
    images = load_images(checkpoint, data, args.tinted)
    with TorchRunner(checkpoint) as runner:
        reference = Reference.from_predictions(images.ask(runner))
    errors = 100 * (1 - reference.top1_right.mean())
    print(f"{args.checkpoint}: top-1 error {errors:.2f} % of {len(reference)} images\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "honest.onnx"
        write_onnx(checkpoint, "0" * 64, path)
        older = None
        if args.stale:
            write_onnx(Checkpoint.load(args.stale), "0" * 64, Path(folder) / "older.onnx")
            older = onnx.load(Path(folder) / "older.onnx")
        if not args.no_faults:
            cases = [
                *spoiled(path, older, open_on),
                *quantized(path, checkpoint, data, open_on),
                in_bf16(path, checkpoint, open_on),
                *(real(args.bundle, args.backend) if args.bundle else ()),
            ]
            print_cases(cases, images, reference)
        if args.honest:
            images = images.first(args.limit)
            print_false_alarms(checkpoint, data, images, args.honest, open_on)


def load_images(checkpoint: Checkpoint, data: Path, tinted: bool) -> Images:
    folder = open_split(data, "val", checkpoint.classes)
    batches = list(load_batches(folder, checkpoint.preprocess, 256))
    pixels = np.concatenate([batch.images for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    sha256 = [name for batch in batches for name in batch.sha256]
    rank = np.concatenate([np.arange((labels == label).sum()) for label in np.unique(labels)])
    order = np.lexsort((labels, rank))
    pixels = pixels[order]
    if tinted:
        gains = np.random.default_rng(0).uniform(0.3, 1, (len(pixels), 1, 1, 3))
        pixels = np.stack(
            [(p * gain).astype(np.uint8) for p, gain in zip(pixels, gains, strict=True)]
        )
    return Images(pixels, labels[order], tuple(sha256[i] for i in order), is_sample(data))


def spoiled(
    path: Path, older: onnx.ModelProto | None, open_on: Open
) -> Iterator[tuple[str, Runner]]:
    """The honest export, and everything that can go wrong with it."""
    named = {
        "none: the honest export": lambda model: None,
        "mean not subtracted": faults.no_mean,
        "mean wrong by 10 levels": faults.mean_off_by(10),
        "mean wrong by 1 level": faults.mean_off_by(1),
        "RGB taken for BGR": faults.bgr,
        "two classes swapped": faults.classes_swapped,
        "classes shifted by one": faults.classes_shifted,
        "noise on one block (B1), 10 %": faults.block_perturbed("blocks_b.0", 0.1),
        "noise on one block (B1), 50 %": faults.block_perturbed("blocks_b.0", 0.5),
        "noise on one block (B1), 200 %": faults.block_perturbed("blocks_b.0", 2),
        "int8 weights, honest scales": faults.int8_weights(1),
        "int8 weights, scales 8 times too small": faults.int8_weights(1 / 8),
        "int8 weights, scales 16 times too large": faults.int8_weights(16),
    }
    if older is not None:
        named["stale weights"] = faults.stale(older)
    for name, fault in named.items():
        model = onnx.load(path)
        fault(model)
        onnx.save(model, path.with_name("spoiled.onnx"))
        yield name, open_on(path.with_name("spoiled.onnx"), "fp32")
    mixed = {"above 1": range(2, 1000), "above 32": range(33, 1000), "of 3, 5, 6, 7": (3, 5, 6, 7)}
    for name, sizes in mixed.items():
        yield f"rows mixed up in batches {name}", faults.RowsMixedUp(open_on(path, "fp32"), sizes)


def quantized(
    path: Path, checkpoint: Checkpoint, data: Path, open_on: Open
) -> Iterator[tuple[str, Runner]]:
    """Both int8 models, with the activations' ranges as calibrated, and with absurd ones."""
    ranges = ranges_of(path, checkpoint, data)
    model, place = onnx.load(path), path.with_name("quantized.onnx")
    factors = {"honest": 1, "8 times too small": 1 / 8, "16 times too large": 16}
    for target, (what, factor) in product(("cpu", "trt"), factors.items()):
        onnx.save(quantize(model, faults.scaled(ranges, factor), target), place)
        yield f"int8-{target}, activation ranges {what}", open_on(place, "int8")


def ranges_of(path: Path, checkpoint: Checkpoint, data: Path) -> dict[str, tuple[float, float]]:
    """The activations' ranges on training images."""
    images = choose_images(open_split(data, "val", checkpoint.classes), CalibrationOptions())
    return calibrate(path, images, checkpoint.preprocess, seed=0).ranges


class Bf16Runner(TorchRunner):
    """The checkpoint's network folded and in bf16, as `model.bf16.onnx` holds it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.network.model = _InBf16(fold(checkpoint.build_model()).bfloat16())


class _InBf16(nn.Module):
    """Normalised float32 images in, float32 logits out, bf16 between."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_nchw: Tensor) -> Tensor:
        return self.model(images_nchw.bfloat16()).float()


def in_bf16(path: Path, checkpoint: Checkpoint, open_on: Open) -> tuple[str, Runner]:
    """The model in bf16, by a backend that has it."""
    if open_on is not OpenVinoRunner:
        return "bf16, by torch", Bf16Runner(checkpoint)
    place = path.with_name("bf16.onnx")
    onnx.save(to_half(onnx.load(path), "bf16"), place)
    return "bf16", open_on(place, "bf16")


def real(path: Path, backend: str) -> Iterator[tuple[str, Runner]]:
    """Every ONNX artefact of a bundle that a CPU can run."""
    bundle = Bundle.open(path)
    for artifact in bundle.manifest.artifacts:
        if backend in backends(artifact):
            yield (
                f"{artifact.file} ({artifact.precision})",
                open_runner(bundle.path / artifact.file, artifact, backend),
            )


def print_cases(cases: list[tuple[str, Runner]], images: Images, reference: Reference) -> None:
    nums = [num for num in NUMS if num < len(reference)] + [len(reference)]
    rows = []
    for name, runner in progress(cases, "faults", len(cases), "faults"):
        with runner:
            logits = images.ask(runner).logits
            found = invariance.check(runner, images.pixels[: invariance.NUM_IMAGES], 64)
        change = judge(reference, logits, "fp32", tolerance_for("fp32"), "").parity
        verdicts = [short(reference, logits, num, images.sample) for num in nums]
        batches = f"caught from {found.first_changed_batch}" if found.changed else "same answers"
        counts = f"{change.top1.lost}, {change.top1.gained}, {change.disagreement.changed}"
        rows.append((name, counts, *verdicts, batches))
    headers = ["fault", "lost, gained, changed", *(f"n = {num}" for num in nums), "batches"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), "\n")


def short(reference: Reference, logits: np.ndarray, num: int, sample: bool) -> str:
    """`fp32's verdict / int8's`: P passed, F failed, ? too few images; an older verdict first."""
    first, logits = reference.take(list(range(num))), logits[:num]
    before, now = [], []
    for precision in ("fp32", "int8"):
        tolerance = tolerance_for(precision, is_sample=sample)
        parity = judge(first, logits, precision, tolerance, "").parity
        before.append(LETTERS[verdict_before(first, logits, precision, parity)])
        now.append(LETTERS[parity.verdict])
    return "/".join(now) if now == before else f"{'/'.join(before)} → {'/'.join(now)}"


def verdict_before(
    reference: Reference, logits: np.ndarray, precision: Precision, parity: Parity
) -> Verdict:
    """The verdict of old: losses alone, and identical by the largest logit."""
    changes = (parity.top1, parity.top5)
    is_close = parity.max_abs_logit_diff <= 1e-4 * np.abs(reference.logits).max()
    if precision == "fp32" and is_close and not any(c.lost + c.gained for c in changes):
        return "passed"
    verdicts = [verdict(c.lost, c.gained, parity.n, c.tolerance_points) for c in changes]
    return max(verdicts, key=("passed", "too_few_images", "failed").index)


def print_false_alarms(
    checkpoint: Checkpoint, data: Path, images: Images, num: int, open_on: Open
) -> None:
    judged: dict[str, list[Parity]] = defaultdict(list)
    dependent, largest = Counter[str](), defaultdict[str, float](float)
    for seed in progress(range(num), "honest exports", num, "exports"):
        other = with_noise(checkpoint, seed)
        with TorchRunner(other) as runner:
            reference = Reference.from_predictions(images.ask(runner))
        for name, precision, runner in honest(other, data, open_on):
            with runner:
                logits = images.ask(runner).logits
                found = invariance.check(runner, images.pixels[: invariance.NUM_IMAGES], 64)
            tolerance = tolerance_for(precision, is_sample=images.sample)
            judged[name].append(judge(reference, logits, precision, tolerance, "").parity)
            dependent[name] += found.changed > 0
            relative = reference.leading_difference(logits) / reference.typical_margin
            largest[name] = max(largest[name], relative)
    rows = [
        (
            name,
            num,
            *(sum(p.verdict == verdict for p in parities) for verdict in VERDICTS),
            max(p.disagreement.changed for p in parities),
            dependent[name],
            f"{largest[name]:.1e}",
        )
        for name, parities in judged.items()
    ]
    headers = (
        f"on {len(images.labels)} images",
        "honest exports",
        "passed",
        "too few images",
        "failed",
        "most answers changed",
        "answers depend on the batch",
        "largest difference of the gaps, typical margins",
    )
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), "\n")


def honest(
    checkpoint: Checkpoint, data: Path, open_on: Open
) -> Iterator[tuple[str, Precision, Runner]]:
    """What an export makes of a checkpoint, in every precision."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        write_onnx(checkpoint, "0" * 64, path)
        yield "fp32", "fp32", open_on(path, "fp32")
        model = onnx.load(path)
        ranges = ranges_of(path, checkpoint, data)
        others: dict[str, tuple[Precision, onnx.ModelProto]] = {
            "int8-cpu": ("int8", quantize(model, ranges, "cpu")),
            "int8-trt": ("int8", quantize(model, ranges, "trt")),
        }
        if open_on is not OpenVinoRunner:  # which has no fp16 on most processors
            others["fp16"] = ("fp16", to_half(onnx.load(path), "fp16"))
        for name, (precision, other) in others.items():
            onnx.save(other, path.with_name(f"{name}.onnx"))
            yield name, precision, open_on(path.with_name(f"{name}.onnx"), precision)
        name, runner = in_bf16(path, checkpoint, open_on)
        yield name, "bf16", runner


def with_noise(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """Another network: 2 % noise on every weight, so that no two exports are alike."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: value * (1 + 0.02 * torch.randn(value.shape, generator=generator))
        if name.endswith("weight")
        else value
        for name, value in checkpoint.state_dict.items()
    }
    return replace(checkpoint, state_dict=weights)


if __name__ == "__main__":
    main()
