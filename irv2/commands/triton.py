"""`irv2 triton`: a bundle as a model repository of NVIDIA Triton."""

from pathlib import Path

import click

from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program


@click.command(cls=Program)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@json_option
def main(bundle: Path, folder: Path, as_json: bool) -> None:
    """Write what has passed in BUNDLE to DIR, as a model repository of NVIDIA Triton.

    A model for each artefact that has passed on ONNX Runtime or TensorRT, with its labels and a
    warm-up. Clients send crops and get logits.
    """
    from irv2.bundle import Bundle
    from irv2.delivery.triton import write_repository

    names = write_repository(Bundle.open(bundle), folder)
    if as_json:
        print_json({"repository": str(folder), "models": names})
    else:
        click.echo(f"{folder}: {', '.join(names)}")
