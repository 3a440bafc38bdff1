"""What fine-tuning is worth: errors after it, of the last layer alone, and from scratch.

    irv2 data fashion-mnist --source DIR --out fashion
    irv2 data sample --out digits
    python tests/long/transfer.py --fashion fashion --digits digits --out runs/transfer

A small network of each kind is trained on one data set and fine-tuned on 5, 10 and 50 images per
class of the other, with three seeds, which choose the images too. Training from scratch has the
same images and three times the steps. Prints a table in Markdown. What is done is not done again,
so that a stopped trial goes on. Takes hours; `--only` takes a part.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

import irv2.train.cli  # noqa: F401 (loaded once, for all processes)
from irv2.cli.main import main as program

NETWORKS = ("inception_resnet_v2", "inception_resnet_v2_slim")
NUMS, SEEDS = (5, 10, 50), (0, 1, 2)
TRAIN = (
    "train --setting 2 --recipe modern --width 0.25 --blocks 1 2 1 --image-size 75 --resize 75 "
    f"--bn-momentum 0.1 --learning-rate {0.045 * 0.25}"
)
SHIFT = {"digits": "--augmentation shift --max-shift 0.125 --no-flip",
         "fashion": "--augmentation shift --max-shift 0.07"}  # fmt: skip
BEGIN_EPOCHS = {"digits": 16, "fashion": 4}
VAL = 1000  # images of validation, evenly over the classes
EPOCHS, HEAD_EPOCHS = 30, 30
TIMES = 3  # as many steps from scratch
METHODS = ("fine-tuned", "last layer alone", "from scratch")


@dataclass(frozen=True)
class Trial:
    """One network, trained on `source` and then on `num` images per class of `target`."""

    arch: str
    source: str
    target: str
    num: int
    seed: int

    @property
    def name(self) -> str:
        """Where its runs lie."""
        return f"{self.arch}-{self.source}-{self.target}-{self.num}-{self.seed}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--only", default="", help="Trials whose names hold this.")
    parser.add_argument("--options", default="", help="More options of irv2 finetune.")
    args = parser.parse_args()
    data = {"fashion": args.fashion.absolute(), "digits": args.digits.absolute()}
    pairs = (("fashion", "digits"), ("digits", "fashion"))
    trials = [
        Trial(arch, *pair, num, seed)
        for arch, pair, num, seed in product(NETWORKS, pairs, NUMS, SEEDS)
    ]
    found: dict[tuple[str, str, str, int], list[dict[str, float]]] = {}
    for trial in trials:
        if args.only in trial.name:
            key = (trial.arch, trial.source, trial.target, trial.num)
            found.setdefault(key, []).append(errors(trial, data, args.out, args.options))
    rows = [
        (arch, f"{source} → {target}", num, len(each), *(interval(each, m) for m in METHODS))
        for (arch, source, target, num), each in found.items()
    ]
    headers = ("network", "data", "images per class", "seeds", *METHODS)
    print(tabulate(rows, headers, tablefmt="github"))


def errors(trial: Trial, data: dict[str, Path], out: Path, more: str) -> dict[str, float]:
    """Top-1 errors in percent, by method."""
    begun, place = begin(trial, data, out), out / trial.name
    common = options(trial, data, out)
    tune = f"finetune {begun} {common} {more}"
    commands = {
        "fine-tuned": f"{tune} --head-epochs {HEAD_EPOCHS} --epochs {EPOCHS} --out {place}-all",
        "last layer alone": f"{tune} --train head --epochs {HEAD_EPOCHS} --out {place}-head",
        "from scratch": f"{TRAIN} --arch {trial.arch} {common} "
        f"--epochs {TIMES * EPOCHS} --out {place}-scratch",
    }
    results = {name: run(command) for name, command in commands.items()}
    print(trial.name, {n: round(e, 2) for n, e in results.items()}, flush=True, file=sys.stderr)
    return results


def begin(trial: Trial, data: dict[str, Path], out: Path) -> Path:
    """Train the network on `source` and return its checkpoint; one put there alone is taken."""
    begun = out / f"begun-{trial.arch}-{trial.source}"
    if (begun / "config.json").is_file() or not (begun / "best.pt").is_file():
        run(
            f"{TRAIN} --arch {trial.arch} --data {data[trial.source]} {SHIFT[trial.source]} "
            f"--epochs {BEGIN_EPOCHS[trial.source]} --device cpu --out {begun}"
        )
    return begun / "best.pt"


def options(trial: Trial, data: dict[str, Path], out: Path, num_val: int = VAL) -> str:
    """What every training on the few images has in common."""
    few = subset(trial, data[trial.target], out / "data", num_val)
    return f"--data {few} --seed {trial.seed} --batch-size 32 {SHIFT[trial.target]} --device cpu"


def run(command: str) -> float:
    """Run one training, or find it done; its last epoch's top-1 error, which nobody chose."""
    fork(f"{command} --workers 0 --chance-steps 0")
    out = Path(command.rpartition(" ")[2])
    last: dict[str, float] = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return last["val_top1_error"]


def fork(command: str, output: str = os.devnull) -> None:
    """Run a command of irv2 in a process of its own, with its results in the file `output`.

    It is forked, as importing PyTorch takes as long as a short training.
    """
    process = get_context("fork").Process(target=_run, args=(command, output))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"irv2 {command}: exit status {process.exitcode}")


def _run(command: str, output: str) -> None:
    with Path(output).open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        program(command.split(), prog_name="irv2")


def subset(trial: Trial, data: Path, place: Path, num_val: int = VAL) -> Path:
    """A folder of links to `num` training images per class, and to some of validation."""
    folder = place / f"{trial.target}-{trial.num}-{trial.seed}-{num_val}"
    if folder.is_dir():
        return folder
    rng = np.random.default_rng(trial.seed)
    for source in sorted(path for path in data.glob("*/*") if path.is_dir()):
        split, label = source.parent.name, source.name
        files = sorted(source.iterdir())
        if split == "train":
            files = [files[i] for i in rng.choice(len(files), trial.num, replace=False)]
        else:
            files = files[: num_val // 10]
        (folder / split / label).mkdir(parents=True)
        for file in files:
            (folder / split / label / file.name).symlink_to(file)
    return folder


def interval(each: list[dict[str, float]], method: str) -> str:
    """The mean over the seeds with its interval."""
    return "{:.1f} ± {:.1f}".format(*mean_and_half([results[method] for results in each]))


def mean_and_half(values: list[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval, by Student's t; nan for one value."""
    if len(values) < 2:
        return values[0], math.nan
    scale = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(student.ppf(0.975, len(values) - 1)) * scale


if __name__ == "__main__":
    main()
