"""Train on Fashion-MNIST with every recipe in turn and write down what comes out.

    irv2 data fashion-mnist --source DIR --out fashion
    python tests/long/fashion_results.py --data fashion --out runs/fashion [--only NAME ...]

Trainings run one after the other as `irv2-train` processes. Stopped at any time, the same command
goes on where it was; finished runs are not repeated. Afterwards OUT holds results.json, the table
results.md and the curves; `--docs docs` puts table and curves into docs/results.md as well.
Expect hours on two cores: `--list` prints the commands, `--epochs` and `--only` shorten it.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NUM_TRAIN, BATCH = 60_000, 64
# The settings' decays are spread over the run as they are over the original's 90 epochs.
ORIGINAL_STEPS = 90 * 20_019
DECAY_STEPS = {"1": 12_800, "2": 25_600}
WIDTH = 0.25
# A narrow network needs a smaller rate, in proportion (DECISIONS.md). Two pixels of 28 are 0.07.
COMMON = (
    f"--width {WIDTH} --learning-rate {0.045 * WIDTH} --image-size 75 --augmentation shift "
    "--max-shift 0.07 --precision bf16 --device cpu"
)
SHALLOW, DEEP = "--blocks 1 2 1", "--blocks 5 10 5"


@dataclass(frozen=True)
class Experiment:
    """One recipe on one network; `epochs` is a factor of --epochs.

    Two `processes` of one thread each train such small images faster than one of two threads, and
    compute the same (docs/training.md).
    """

    setting: str
    options: str
    seeds: tuple[int, ...] = (0,)
    epochs: float = 1.0
    processes: int = 1

    def num_epochs(self, epochs: int) -> int:
        """Of its runs, where most have `epochs`."""
        return max(1, round(self.epochs * epochs))

    def command(self, seed: int, num_epochs: int, data: Path, out: Path) -> list[str]:
        """How to train it into `out`."""
        steps = num_epochs * -(-NUM_TRAIN // BATCH)
        decay = max(1, round(DECAY_STEPS[self.setting] * steps / ORIGINAL_STEPS))
        options = f"{COMMON} {self.options} --epochs {num_epochs} --seed {seed}"
        if "--recipe modern" not in options:  # a cosine instead
            options += f" --decay-steps {decay}"
        launcher = f"torch.distributed.run --standalone --nproc-per-node {self.processes} -m"
        return [
            sys.executable,
            "-m",
            *(launcher.split() if self.processes > 1 else []),
            "irv2",
            "train",
            "--setting",
            self.setting,
            *options.split(),
            "--data",
            str(data),
            "--out",
            str(out),
        ]


EXPERIMENTS = {
    "best": Experiment("2", f"{SHALLOW} --recipe modern", epochs=4, processes=2),
    "setting-1": Experiment("1", SHALLOW),
    "setting-2": Experiment("2", SHALLOW, seeds=(0, 1, 2)),
    "setting-2-momentum-0.9": Experiment("2", f"{SHALLOW} --momentum 0.9"),
    "modern": Experiment("2", f"{SHALLOW} --recipe modern", seeds=(0, 1, 2)),
    "deep-setting-1": Experiment("1", DEEP, epochs=0.75),
    "deep-setting-2": Experiment("2", DEEP, epochs=0.75),
    "deep-unscaled": Experiment("2", f"{DEEP} --residual-scale 1.0", epochs=0.75),
    "deep-modern": Experiment("2", f"{DEEP} --recipe modern", epochs=0.75),
}
# Which runs share a picture, and the upper end of its error axis.
PICTURES = {
    "fashion-recipes": (["setting-1", "setting-2", "setting-2-momentum-0.9", "modern", "best"], 30),
    "fashion-deep": (["deep-setting-1", "deep-setting-2", "deep-unscaled", "deep-modern"], 60),
}


def main() -> None:
    options = parse()
    for name in options.only or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        num_epochs = experiment.num_epochs(options.epochs)
        for seed in experiment.seeds:
            run = options.out / f"{name}-seed{seed}"
            command = experiment.command(seed, num_epochs, options.data, run)
            command += ["--limit", str(options.limit)] if options.limit else []
            print(shlex.join(["python", *command[1:]]), flush=True)
            if not options.list and summary(run).get("epochs") != num_epochs:
                train(run, command)
    if not options.list:
        write(options.out, options.docs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="made by irv2 data fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion"))
    parser.add_argument(
        "--epochs", type=int, default=4, help="of most runs; 'best' takes four times as many"
    )
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, metavar="NAME")
    parser.add_argument("--limit", type=int, help="images of each split, to try the script")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--docs", type=Path, help="folder of results.md to bring up to date")
    return parser.parse_args()


def train(run: Path, command: list[str]) -> None:
    """Run the command and add up its minutes; a training that the trainer stops is a result too."""
    run.parent.mkdir(parents=True, exist_ok=True)
    clock = minutes_path(run)
    before = float(clock.read_text()) if clock.exists() else 0.0
    started = time.monotonic()
    try:
        status = subprocess.run(command).returncode
    finally:
        clock.write_text(f"{before + (time.monotonic() - started) / 60:.2f}")
    if status not in (0, 1):  # wrong usage, or a signal
        sys.exit(status)


def minutes_path(run: Path) -> Path:
    """Where a run's wall time is kept."""
    return run.with_name(f"{run.name}.minutes")


def summary(run: Path) -> dict[str, float]:
    """The last epoch's errors: not the best one's, which would be chosen on the test images."""
    metrics = run / "metrics.jsonl"  # after the first epoch
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    if not lines:
        return {}
    row = json.loads(lines[-1])
    errors = {key: row[key] for key in row if key.endswith(("val_top1_error", "val_top5_error"))}
    return {"epochs": row["epoch"], "n": row["num_val_images"], **errors}


def write(out: Path, docs: Path | None) -> None:
    """results.json, results.md and the pictures; into `docs` too where it is given."""
    results = list(collect(out))
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = table(results)
    (out / "results.md").write_text(text)
    print(text)
    folder = docs or out
    for picture, (names, max_error) in PICTURES.items():
        runs = [out / f"{name}-seed0" for name in names]
        runs = [str(run) for run in runs if (run / "metrics.jsonl").exists()]
        if runs:
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "irv2",
                    "plot",
                    *runs,
                    "-o",
                    folder / f"{picture}.png",
                    "--max-error",
                    str(max_error),
                ],
                check=True,
            )
    if docs:
        page = docs / "results.md"
        before, rest = page.read_text().split("<!-- table -->\n")
        after = rest.split("<!-- end of table -->")[1]
        page.write_text(f"{before}<!-- table -->\n{text}<!-- end of table -->{after}")


def collect(out: Path) -> Iterator[dict[str, object]]:
    """A row per experiment that has runs."""
    for name, experiment in EXPERIMENTS.items():
        runs = [out / f"{name}-seed{seed}" for seed in experiment.seeds]
        runs = [run for run in runs if minutes_path(run).exists()]  # others are under way
        found = [(run, summary(run)) for run in runs if summary(run)]
        if found:
            keys = sorted({key for _, errors in found for key in errors} - {"epochs", "n"})
            yield {
                "name": name,
                "epochs": [errors["epochs"] for _, errors in found],
                "n": found[0][1]["n"],
                "minutes": [float(minutes_path(run).read_text()) for run, _ in found],
                **{key: [errors[key] for _, errors in found] for key in keys},
            }


def table(results: list[dict[str, object]]) -> str:
    """Mean over seeds, and each."""
    lines = [
        "| run | epochs | minutes each | top-1 error, % | averaged weights | top-5 error, % |",
        "|---|---|---|---|---|---|",
    ]
    for row in results:
        top1, ema, top5 = (
            _mean_and_each(row.get(key, []))
            for key in ("val_top1_error", "ema_val_top1_error", "val_top5_error")
        )
        minutes = statistics.mean(row["minutes"])
        epochs = "/".join(f"{n:.0f}" for n in sorted(set(row["epochs"])))
        lines.append(f"| {row['name']} | {epochs} | {minutes:.0f} | {top1} | {ema} | {top5} |")
    return "\n".join(lines) + "\n"


def _mean_and_each(values: list[float]) -> str:
    if not values:
        return "-"
    each = ", ".join(f"{value:.2f}" for value in values)
    return each if len(values) == 1 else f"**{statistics.mean(values):.2f}** ({each})"


if __name__ == "__main__":
    main()
