"""`irv2 plot`: training curves of runs, of the original's Torch7 logs, and its published one."""

from pathlib import Path

import click

from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.system.files import check_folder_of


@click.command(
    cls=Program,
    examples=("irv2 plot runs/first -o curves.png", "irv2 plot runs/* --max-error 40 -o all.png"),
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN_DIR_or_LOG...",
                type=click.Path(exists=True, path_type=Path))  # fmt: skip
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="PNG", help="Picture to write.")  # fmt: skip
@click.option(
    "--published",
    is_flag=True,
    help="Add the validation curve that setting 1 reached on ImageNet, read off its "
    "published picture to about 0.5 points.",
)
@click.option("--max-error", type=FloatRange(0, 100, min_open=True), default=100.0,
              metavar="PERCENT", help="Upper end of the error axis.")  # fmt: skip
@json_option
def main(
    runs: tuple[Path, ...], out: Path, published: bool, max_error: float, as_json: bool
) -> None:
    """Draw errors over epochs from run folders, metrics.jsonl files and Torch7 logs.

    A single run has training in red and validation in blue; several have one colour each. Top-5 is
    dashed. A fine-tuning's two phases follow each other, with a dotted line between.
    """
    from irv2.train.curves.curves import draw_curves, read_curve

    check_folder_of(out)
    curves = [read_curve(run) for run in runs]
    if len({curve.name for curve in curves}) < len(curves):  # folders of the same name: use paths
        curves = [curve._replace(name=str(run)) for run, curve in zip(runs, curves, strict=True)]
    draw_curves(curves, out, published=published, max_error=max_error)
    if as_json:
        print_json({"out": str(out), "runs": [curve.name for curve in curves]})
    else:
        click.echo(str(out))
