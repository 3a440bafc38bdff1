"""Whether the recipe of fine-tuning is a good one: each value of it changed alone.

    irv2 data fashion-mnist --source DIR --out fashion
    irv2 data sample --out digits
    python tests/long/recipe.py --fashion fashion --digits digits --out runs/recipe

For some pairs of a network and few images, as transfer.py has them, fine-tunes with the defaults
and with one value changed at a time. Prints errors, and the mean difference to the defaults over
pairs and seeds with its 95 % interval, as a table in Markdown. What is done is not done again, so
that a stopped trial goes on. One core takes a quarter of a minute for 10 images per class, a whole
one for 50.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
from tabulate import tabulate
from transfer import Trial, begin, fork, mean_and_half, options, run, subset

PAIRS = (
    ("inception_resnet_v2_slim", "fashion", "digits"),
    ("inception_resnet_v2", "digits", "fashion"),
    ("inception_resnet_v2", "fashion", "digits"),
    ("inception_resnet_v2_slim", "digits", "fashion"),
)
VAL = 500  # images
GUESSING = 90.0  # percent wrong
DEFAULTS = "defaults"
# The first phase's alone; all else changes the second, which begins where the first has ended.
HEAD = {"feature crops 1": "--feature-crops 1", "head epochs 0": None}
VARIANTS = {
    DEFAULTS: "",
    "learning rate x3": "--learning-rate 0.06",
    "backbone's factor 1": "--backbone-lr-factor 1",
    "batch norm of the group": "--batch-norm group",
    "learning rate x0.3": "--learning-rate 0.006",
    "epochs 30": "--epochs 30",
    "head epochs 0": "",
    "label smoothing 0": "--label-smoothing 0",
    "decay of all": "--decay all",
    "backbone's factor 0.3": "--backbone-lr-factor 0.3",
    "feature crops 1": "",
    "warm-up none": "--warmup-steps 0",
    "backbone's factor 0.03": "--backbone-lr-factor 0.03",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--pairs", type=int, nargs="+", default=range(len(PAIRS)))
    parser.add_argument("--nums", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="Parts of their names.")
    args = parser.parse_args()
    data = {"fashion": args.fashion.absolute(), "digits": args.digits.absolute()}
    trials = [
        Trial(*PAIRS[pair], num, seed)
        for num, seed, pair in product(args.nums, range(args.seeds), args.pairs)
    ]
    variants = [
        name for name in VARIANTS if name == DEFAULTS or any(v in name for v in args.variants)
    ]
    errors = {
        (trial, variant): error(trial, variant, data, args.out)
        for variant in variants
        for trial in trials
    }
    pairs = list(dict.fromkeys((t.arch, t.source, t.target, t.num) for t in trials))
    rows = []
    for variant in variants:
        differences = [errors[t, variant] - errors[t, DEFAULTS] for t in trials]
        means = [
            np.mean(
                [errors[t, variant] for t in trials if t.name.startswith("-".join(map(str, p)))]
            )
            for p in pairs
        ]
        rows.append((variant, *means, "{:+.1f} ± {:.1f}".format(*mean_and_half(differences))))
    headers = [f"{arch}, {source} → {target}, {num}" for arch, source, target, num in pairs]
    print(tabulate(rows, ("", *headers, "difference"), tablefmt="github", floatfmt=".1f"))


def error(trial: Trial, variant: str, data: dict[str, Path], out: Path) -> float:
    """Top-1 error in percent after both phases."""
    begun, place = begin(trial, data, out), out / trial.name
    common = options(trial, data, out, VAL)
    head = HEAD.get(variant, "")
    if head is not None:
        first = f"{place}-head{'-1' if head else ''}"
        run(f"finetune {begun} {common} --train head {head} --out {first}")
        begun = Path(first, "best.pt")
    tuned = Path(f"{place}-{variant.replace(' ', '-')}")
    # Almost no validation while training, which would take most of the time.
    try:
        run(
            f"finetune {begun} {options(trial, data, out, num_val=10)} --head-epochs 0 "
            f"{VARIANTS[variant]} --out {tuned}"
        )
    except SystemExit as failure:
        if variant == DEFAULTS:
            raise
        print(failure, "counts as guessing", file=sys.stderr)  # the loss was not finite
        return GUESSING
    few = subset(trial, data[trial.target], out / "data", VAL)
    output = f"{tuned}/eval.json"
    fork(f"eval {tuned / 'last.pt'} --data {few} --workers 1 --device cpu --json", output)
    found: float = json.loads(Path(output).read_text())["top1_error"]
    print(trial.name, variant, round(found, 2), flush=True, file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
