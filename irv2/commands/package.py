"""`irv2 package`: a bundle in the form in which another server or library takes models."""

from pathlib import Path
from typing import Literal

import click

from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program


@click.command(
    cls=Program,
    examples=("irv2 package best.bundle repository --for triton",),
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--for", "host", type=click.Choice(["triton", "onnxruntime"]), required=True,
    help="A model repository of NVIDIA Triton, or a model package of ONNX Runtime.",
)  # fmt: skip
@json_option
def main(bundle: Path, folder: Path, host: Literal["triton", "onnxruntime"], as_json: bool) -> None:
    """Write what has passed in BUNDLE to the new folder DIR, for another host.

    Only what has passed on an engine that the host has. Its clients send crops and get logits.
    """
    from irv2.bundle import Bundle
    from irv2.delivery.onnxruntime import write_package
    from irv2.delivery.triton import write_repository

    write = write_repository if host == "triton" else write_package
    names = write(Bundle.open(bundle), folder)
    if as_json:
        print_json({"folder": str(folder), "models": names})
    else:
        click.echo(f"{folder}: {', '.join(names)}")
