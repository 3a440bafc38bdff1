"""The command `irv2` and its programs, listed in the order of the pipeline.

The table is static, so that `irv2 --help` imports no program; a program is
imported when it is called.
"""

import sys
from typing import NoReturn

import click

from irv2.options import Entry, TableGroup

PROGRAMS = {
    "data": Entry("irv2.data_cli:main", "Make data folders.", "train"),
    "train": Entry("train.cli:main", "Train a network; leaves a checkpoint.", "train"),
    "plot": Entry("train.plot_cli:main", "Draw training curves.", "train"),
    "import": Entry("convert.import_cli:main", "Checkpoint from published weights.", "convert"),
    "eval": Entry("irv2.eval_cli:main", "Measure the errors of a checkpoint or a bundle.", "train"),
    "features": Entry("irv2.features_cli:main", "Write the last layer's features.", "train"),
    "export": Entry("convert.cli:export", "Convert and verify a checkpoint.", "convert"),
    "verify": Entry("convert.cli:verify", "Judge a bundle again, on this machine.", "convert"),
    "inspect": Entry("convert.cli:inspect", "Show a bundle and check its hashes."),
    "diff": Entry("convert.cli:diff", "List the images on which two models differ.", "convert"),
    "graph": Entry("convert.graph_cli:main", "Draw the network of an ONNX file.", "convert"),
    "serve": Entry("serve.cli:main", "Serve a bundle over gRPC."),
    "classify": Entry("irv2.classify_cli:main", "Classify image files."),
    "bench": Entry("irv2.bench_cli:main", "Measure this machine, as ratios within one run."),
}


@click.group(cls=TableGroup, table=PROGRAMS, title="Programs, in the order of the pipeline")
def main() -> None:
    """Inception-ResNet-v2: train, export, verify, serve, classify."""


def train() -> NoReturn:
    """`irv2-train`."""
    _run("train")


def export() -> NoReturn:
    """`irv2-export`."""
    _run("export")


def serve() -> NoReturn:
    """`irv2-serve`."""
    _run("serve")


def classify() -> NoReturn:
    """`irv2-classify`."""
    _run("classify")


def _run(name: str) -> NoReturn:
    # Through the group, so that both spellings share one way of failing.
    main.main([name, *sys.argv[1:]], prog_name="irv2")
