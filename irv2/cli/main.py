"""The command `irv2` and its programs, listed in the order of the pipeline.

The table is static, so that `irv2 --help` imports no program; a program is
imported when it is called.
"""

import click

from irv2.cli.program import Entry, TableGroup

PROGRAMS = {
    "doctor": Entry("irv2.commands.doctor:main", "Say what this machine can run, what is wrong."),
    "data": Entry("irv2.commands.data:main", "Make, divide and check data folders.", "train"),
    "train": Entry("irv2.train.cli:main", "Train a network; leaves a checkpoint.", "train"),
    "finetune": Entry(
        "irv2.train.finetune_cli:finetune",
        "Train on from weights that know other pictures.",
        "train",
    ),
    "plot": Entry("irv2.train.curves.cli:main", "Draw training curves.", "train"),
    "import": Entry(
        "irv2.convert.importing.cli:main", "Checkpoint from published weights.", "convert"
    ),
    "eval": Entry(
        "irv2.commands.eval:main", "Measure a model or a server, class by class.", "train"
    ),
    "features": Entry("irv2.commands.features:main", "Write the last layer's features.", "train"),
    "export": Entry("irv2.convert.cli:export", "Convert and verify a checkpoint.", "convert"),
    "verify": Entry("irv2.convert.cli:verify", "Judge a bundle again, on this machine.", "verify"),
    "inspect": Entry("irv2.convert.inspect.cli:inspect", "Show a bundle and check its hashes."),
    "sign": Entry("irv2.commands.sign:main", "Sign a bundle.", "verify"),
    "push": Entry("irv2.commands.registry:push", "Upload a bundle to a registry."),
    "pull": Entry("irv2.commands.registry:pull", "Download a bundle from a registry."),
    "package": Entry("irv2.commands.package:main", "Write a bundle for Triton or ONNX Runtime."),
    "diff": Entry(
        "irv2.convert.inspect.cli:diff", "List the images on which two models differ.", "convert"
    ),
    "report": Entry("irv2.commands.report:main", "Write a page about runs and bundles.", "verify"),
    "graph": Entry(
        "irv2.convert.inspect.cli:graph", "Draw the network of an ONNX file.", "convert"
    ),
    "serve": Entry("irv2.serve.cli:main", "Serve a bundle over gRPC."),
    "shadow": Entry("irv2.commands.shadow:main", "Say how often a server's shadow agrees."),
    "classify": Entry("irv2.commands.classify:main", "Classify image files."),
    "batch": Entry("irv2.commands.batch:main", "Classify millions of files, resumably.", "batch"),
    "bench": Entry("irv2.bench.cli:main", "Measure this machine, as ratios within one run."),
    "completion": Entry("irv2.commands.completion:main", "Let a shell complete all this."),
}


@click.group(cls=TableGroup, table=PROGRAMS, title="Programs, in the order of the pipeline")
def main() -> None:
    """Inception-ResNet-v2: train, export, verify, serve, classify."""
