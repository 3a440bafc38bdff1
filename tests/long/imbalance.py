"""What the options against classes of unequal size are worth, at 50 : 1 on Fashion-MNIST.

    irv2 data fashion-mnist --source DIR --out fashion
    irv2 data sample --out digits
    python tests/long/imbalance.py --fashion fashion --digits digits --out runs/imbalance

A small network trained on the digits is fine-tuned on Fashion-MNIST with 150 images of five classes
and 3 of the others; which classes, the seed says. Validation has as many images of every class, so
that accuracy is balanced accuracy. Prints a table in Markdown, with 95 % intervals over the seeds
(the difference is of the same seeds). What is done is not done again.
"""

import argparse
import csv
from pathlib import Path

from tabulate import tabulate
from transfer import SHIFT, Trial, begin, mean_and_half, run, subset

MANY, FEW = 150, 3
VAL = 500  # images
ARCH = "inception_resnet_v2"
METHODS = {
    "neither": "",
    "weights": "--class-weights balanced",
    "sampling": "--sampling balanced",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/imbalance"))
    parser.add_argument("--train", default="all", help="As irv2 finetune's.")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    data = {"fashion": args.fashion.absolute(), "digits": args.digits.absolute()}
    accuracies = {
        name: [accuracy(name, seed, args.train, data, args.out) for seed in range(args.seeds)]
        for name in METHODS
    }
    rows = []
    for name, each in accuracies.items():
        gains = [mine - plain for mine, plain in zip(each, accuracies["neither"], strict=True)]
        gain = "{:+.1f} ± {:.1f}".format(*mean_and_half(gains))
        rows.append((name, "{:.1f} ± {:.1f}".format(*mean_and_half(each)), gain))
    headers = ("against imbalance", "balanced accuracy, %", "difference, points")
    print(tabulate(rows, headers, tablefmt="github"))


def accuracy(name: str, seed: int, stage: str, data: dict[str, Path], out: Path) -> float:
    """The balanced accuracy in percent after the last epoch."""
    trial = Trial(ARCH, "digits", "fashion", MANY, seed)
    return 100 - run(
        f"finetune {begin(trial, data, out)} --data {unequal(trial, data['fashion'], out)} "
        f"--seed {seed} {SHIFT['fashion']} --device cpu --train {stage} {METHODS[name]} "
        f"--out {out / f'{name}-{stage}-{seed}'}"
    )


def unequal(trial: Trial, data: Path, out: Path) -> Path:
    """Write a list in which every other class has only a few training images."""
    folder, path = subset(trial, data, out / "data", VAL), out / f"unequal-{trial.seed}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split"))
        for split in ("train", "val"):
            for i, label in enumerate(sorted((folder / split).iterdir())):
                is_small = split == "train" and (i + trial.seed) % 2
                images = sorted(label.iterdir())[: FEW if is_small else None]
                rows.writerows((image.absolute(), label.name, split) for image in images)
    return path


if __name__ == "__main__":
    main()
