"""`irv2 plot`: training curves of one or several runs, from their folders or metrics.jsonl."""

from pathlib import Path

import click

from irv2.errors import DataError
from irv2.options import Program, json_option, print_json


@click.command(cls=Program)
@click.argument("runs", nargs=-1, required=True, metavar="RUN_DIR_or_LOG...",
                type=click.Path(exists=True, path_type=Path))  # fmt: skip
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="PNG", help="Picture to write.")  # fmt: skip
@json_option
def main(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Draw the errors over epochs: training red, validation blue, top-5 dashed."""
    from train.curves import METRICS, draw_curves, read_metrics

    logs = [run / METRICS if run.is_dir() else run for run in runs]
    curves = [read_metrics(log) for log in logs]
    for log, rows in zip(logs, curves, strict=True):
        if not rows:
            raise DataError(log, "no finished epoch in it", "a run of irv2-train")
    names = [log.absolute().parent.name if len(runs) > 1 else "" for log in logs]
    draw_curves(list(zip(names, curves, strict=True)), out)
    print_json({"out": str(out)}) if as_json else click.echo(str(out))
