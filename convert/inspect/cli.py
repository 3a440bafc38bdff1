"""`irv2 graph`: a picture of the network, read from its ONNX file."""

from pathlib import Path

import click

from irv2.bundle import Bundle
from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program
from irv2.errors import UsageError
from irv2.manifest import ONNX_FILE
from irv2.system.files import check_folder_of

SUFFIXES = (".png", ".svg")


@click.command(cls=Program)
@click.argument("model", type=click.Path(exists=True, path_type=Path), metavar="BUNDLE|ONNX")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="PNG|SVG", help="Picture to write.")  # fmt: skip
@json_option
def main(model: Path, out: Path, as_json: bool) -> None:
    """Draw the blocks, layers and shapes of a bundle's model.onnx or of an ONNX file."""
    from irv2.convert.inspect.graph import read_blocks
    from irv2.convert.inspect.graph_picture import draw_graph

    if out.suffix not in SUFFIXES:
        raise UsageError("--out", str(out), f"a name that ends in {' or '.join(SUFFIXES)}")
    check_folder_of(out)
    path = Bundle.open(model).path / ONNX_FILE if model.is_dir() else model
    blocks = read_blocks(path)
    draw_graph(blocks, path.absolute().relative_to(model.absolute().parent).as_posix(), out)
    if as_json:
        found = [{"title": b.title, "count": b.count, "shape": list(b.shape)} for b in blocks]
        print_json({"out": str(out), "blocks": found})
    else:
        click.echo(str(out))
