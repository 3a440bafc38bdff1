"""`irv2 bench`: measurements of this machine, reported as ratios within one run."""

import click

from irv2.cli.program import Entry, TableGroup

BENCHMARKS = {
    "loader": Entry("irv2.train.bench.loader:main", "Images/s of the training input.", "train"),
    "train": Entry("irv2.train.bench.train:main", "Images/s of a training step.", "train"),
    "engine": Entry("irv2.convert.bench.engine:main", "Images/s of each precision.", "convert"),
    "serve": Entry("irv2.serve.bench.serve:main", "Requests/s and their cost, closed loop.", "cpu"),
    "load": Entry(
        "irv2.serve.bench.load:main", "Latency and goodput at given rates, open loop.", "cpu"
    ),
}


@click.group(cls=TableGroup, table=BENCHMARKS, title="Benchmarks")
def main() -> None:
    """Measure this machine: medians and ratios of cases timed in turn, in one run."""
