"""`irv2 bench`: measurements of this machine, reported as ratios within one run."""

import click

from irv2.options import Entry, TableGroup

BENCHMARKS = {
    "loader": Entry("train.bench_loader:main", "Images/s of the training input.", "train"),
    "train": Entry("train.bench_train:main", "Images/s of a training step.", "train"),
    "engine": Entry("convert.bench_engine:main", "Images/s of each precision.", "convert"),
    "serve": Entry("serve.bench_serve:main", "Requests/s and their cost, closed loop.", "cpu"),
    "load": Entry("serve.bench_load:main", "Latency and goodput at given rates, open loop.", "cpu"),
}


@click.group(cls=TableGroup, table=BENCHMARKS, title="Benchmarks")
def main() -> None:
    """Measure this machine: medians and ratios of cases timed in turn, in one run."""
