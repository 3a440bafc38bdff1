"""What the options against classes of unequal size are worth, at 50 : 1 on Fashion-MNIST.

    irv2 data fashion-mnist --source DIR --out fashion
    irv2 data sample --out digits
    python tests/long/imbalance.py --fashion fashion --digits digits --out runs/imbalance

A small network trained on the digits is fine-tuned on Fashion-MNIST with 150 images of five classes
and 3 of the others; which classes, the seed says. Validation has as many images of every class, so
that accuracy is balanced accuracy. Prints a table in Markdown; what is done is not done again.
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
    rows = []
    for name, method in METHODS.items():
        accuracies = []
        for seed in range(args.seeds):
            trial = Trial(ARCH, "digits", "fashion", MANY, seed)
            begun = begin(trial, data, args.out)
            error = run(
                f"finetune {begun} --data {unequal(trial, data['fashion'], args.out)} "
                f"--seed {seed} {SHIFT['fashion']} --device cpu --train {args.train} {method} "
                f"--out {args.out / f'{name}-{args.train}-{seed}'}"
            )
            accuracies.append(100 - error)
        rows.append(
            (name, args.train, args.seeds, "{:.1f} ± {:.1f}".format(*mean_and_half(accuracies)))
        )
    print(
        tabulate(rows, ("against imbalance", "--train", "seeds", "balanced accuracy, %"), "github")
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
