"""`irv2 inspect`, `irv2 diff` and `irv2 graph`: look at a bundle, two answers, a network."""

from pathlib import Path

import click

from irv2.bundle import Bundle
from irv2.cli.options import data_option, json_option, print_json
from irv2.cli.program import Program
from irv2.cli.signing_options import require_signature_option
from irv2.errors import UsageError
from irv2.manifest import ONNX_FILE
from irv2.system.files import check_folder_of

PICTURE_SUFFIXES = (".png", ".svg")


@click.command(
    cls=Program,
    examples=("irv2 inspect best.bundle",),
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@require_signature_option
@json_option
def inspect(bundle: Path, require_signature: Path | None, as_json: bool) -> None:
    """Show what BUNDLE holds and who signed it; check every hash.

    Whether the signer is the one that it says needs --require-signature.
    """
    from irv2.trust.inspection import inspect_bundle

    inspection = inspect_bundle(bundle, require_signature)
    if as_json:
        print_json(inspection.to_json())
    else:
        click.echo(inspection.to_text())
    inspection.require_whole()


@click.command(
    cls=Program,
    examples=("irv2 diff best.bundle:model.int8-cpu.onnx best.bundle --data pictures -o diff.png",),
)
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@data_option
@click.option(
    "-o", "sheet_path", type=click.Path(dir_okay=False, path_type=Path), metavar="PNG",
    help="Draw the pictures too, with both answers.",
)  # fmt: skip
@json_option
def diff(a: str, b: str, data: Path | None, sheet_path: Path | None, as_json: bool) -> None:
    """List the images to which A and B give different best classes.

    A and B are BUNDLE (its model.onnx), BUNDLE:FILE (another artefact), BUNDLE:reference (the
    checkpoint), a LEDGER.npz of `irv2 eval --ledger`, or a CHECKPOINT.pt, which then classifies
    DIR/val. DIR/val names the image files too.
    """
    from irv2.convert.inspect.diff import load_model_ledger
    from irv2.data.samples import resolve_data
    from irv2.measures.difference import diff as run_diff

    if sheet_path is not None:
        check_folder_of(sheet_path)
        data = resolve_data(data)
    difference = run_diff(load_model_ledger(a, data), load_model_ledger(b, data), data)
    if sheet_path is not None and difference.rows:
        from irv2.convert.inspect.contact_sheet import write_sheet

        write_sheet(difference, sheet_path)
    if as_json:
        print_json(difference.to_json())
    else:
        click.echo(difference.to_text())


@click.command(
    cls=Program,
    examples=("irv2 graph best.bundle -o network.png",),
)
@click.argument("model", type=click.Path(exists=True, path_type=Path), metavar="BUNDLE|ONNX")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="PNG|SVG", help="Picture to write.")  # fmt: skip
@json_option
def graph(model: Path, out: Path, as_json: bool) -> None:
    """Draw the blocks, layers and shapes of a bundle's model.onnx or of an ONNX file."""
    from irv2.convert.inspect.graph import read_blocks
    from irv2.convert.inspect.graph_picture import draw_graph

    if out.suffix not in PICTURE_SUFFIXES:
        raise UsageError("--out", str(out), f"a name that ends in {' or '.join(PICTURE_SUFFIXES)}")
    check_folder_of(out)
    path = Bundle.open(model).path / ONNX_FILE if model.is_dir() else model
    blocks = read_blocks(path)
    draw_graph(blocks, path.absolute().relative_to(model.absolute().parent).as_posix(), out)
    if as_json:
        found = [{"title": b.title, "count": b.count, "shape": list(b.shape)} for b in blocks]
        print_json({"out": str(out), "blocks": found})
    else:
        click.echo(str(out))
