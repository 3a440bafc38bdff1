"""Proof that the gate works: seeded faults, which of them it catches, and at how many images.

    python tests/long/seeded_faults.py CHECKPOINT [--data DIR] [--stale CHECKPOINT]
                                       [--bundle BUNDLE] [--honest 100] [--tinted]

Prints tables in Markdown, as in docs/gate.md. Every fault is judged by fp32's tolerance and, as
the kindest, by int8's. `--tinted` colours the images, since swapped channels do not show on grey
ones. `--stale` gives the older weights. `--bundle` adds the real artefacts of an export of
CHECKPOINT: how many decisions each changes. `--honest N` exports N networks, each the checkpoint
with noise of its own on all weights, and counts those that the gate does not pass.

The sample and N = 100: about 15 minutes on two cores; Fashion-MNIST without it about 5.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import faults
import numpy as np
import onnx
import torch
from tabulate import tabulate

from convert import invariance
from convert.gate import judge, tolerance_for
from convert.onnx_export import write_onnx
from convert.reference import Reference
from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.dataset import open_split
from irv2.evaluate import Ledger, load_batches
from irv2.progress import progress
from irv2.runners.base import Runner
from irv2.runners.choose import open_runner
from irv2.runners.onnx import OnnxRunner
from irv2.runners.torch import TorchRunner
from irv2.samples import is_sample, resolve_data

NUMS = (100, 360, 1000, 3000, 10_000)
BATCH = 32


@dataclass(frozen=True)
class Images:
    """All evaluation images in memory, in an order in which every beginning has all classes."""

    pixels: np.ndarray  # uint8 (n, S, S, 3)
    labels: np.ndarray
    sha256: tuple[str, ...]
    sample: bool

    def ask(self, runner: Runner) -> Ledger:
        """One runner's answers."""
        starts = range(0, len(self.pixels), BATCH)
        rows = [runner.run(self.pixels[start : start + BATCH]) for start in starts]
        names = ("",) * len(self.sha256)
        return Ledger(names, self.sha256, self.labels, np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--stale", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--honest", type=int, default=0)
    parser.add_argument("--tinted", action="store_true")
    args = parser.parse_args()
    checkpoint = Checkpoint.load(args.checkpoint)
    images = load_images(checkpoint, resolve_data(args.data), args.tinted)
    with TorchRunner(checkpoint) as runner:
        reference = Reference.from_ledger(images.ask(runner))
    errors = 100 * (1 - reference.top1_right.mean())
    print(f"{args.checkpoint}: top-1 error {errors:.2f} % of {len(reference)} images\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "honest.onnx"
        write_onnx(checkpoint, "0" * 64, path)
        older = None
        if args.stale:
            write_onnx(Checkpoint.load(args.stale), "0" * 64, Path(folder) / "older.onnx")
            older = onnx.load(Path(folder) / "older.onnx")
        cases = [*spoiled(path, older), *(real(args.bundle) if args.bundle else ())]
        print_cases(cases, images, reference)
        if args.honest:
            print_false_alarms(checkpoint, images, args.honest, Path(folder))


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


def spoiled(path: Path, older: onnx.ModelProto | None) -> Iterator[tuple[str, Runner]]:
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
        yield name, OnnxRunner(path.with_name("spoiled.onnx"))
    yield "rows mixed up in batches above 1", faults.WrongAbove(OnnxRunner(path), 1)
    yield "rows mixed up in batches above 32", faults.WrongAbove(OnnxRunner(path), 32)


def real(path: Path) -> Iterator[tuple[str, Runner]]:
    """Every ONNX artefact of a bundle that a CPU can run."""
    bundle = Bundle.open(path)
    for artifact in bundle.manifest.artifacts:
        if artifact.format == "onnx" and artifact.precision != "bf16":
            yield f"{artifact.file} ({artifact.precision})", open_runner(bundle, artifact, "cpu")


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
        rows.append((name, f"{change.top1.lost}, {change.top1.gained}", *verdicts, batches))
    headers = ["fault", "lost, gained", *(f"n = {num}" for num in nums), "batches"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), "\n")


def short(reference: Reference, logits: np.ndarray, num: int, sample: bool) -> str:
    """`fp32's verdict / int8's`: P passed, F failed, ? too few images."""
    first = reference.take(list(range(num)))
    verdicts = (
        judge(first, logits[:num], precision, tolerance_for(precision, is_sample=sample), "")
        for precision in ("fp32", "int8")
    )
    letters = {"passed": "P", "failed": "F", "too_few_images": "?"}
    return " / ".join(letters[judgement.parity.verdict] for judgement in verdicts)


def print_false_alarms(checkpoint: Checkpoint, images: Images, num: int, folder: Path) -> None:
    alarms, changed, largest = 0, 0, 0.0
    for seed in progress(range(num), "honest exports", num, "exports"):
        other = with_noise(checkpoint, seed)
        write_onnx(other, "0" * 64, folder / "other.onnx")
        with TorchRunner(other) as torch_runner, OnnxRunner(folder / "other.onnx") as runner:
            reference = Reference.from_ledger(images.ask(torch_runner))
            logits = images.ask(runner).logits
            found = invariance.check(runner, images.pixels[: invariance.NUM_IMAGES], 64)
        parity = judge(reference, logits, "fp32", tolerance_for("fp32"), "").parity
        alarms += parity.verdict != "passed"
        changed += found.changed > 0
        largest = max(largest, parity.max_abs_logit_diff / reference.max_abs_logit)
    print(
        f"{num} honest exports: {alarms} not passed as fp32, {changed} with an answer that depends "
        f"on its batch; largest relative logit difference {largest:.1e}"
    )


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
