"""`irv2 doctor`: what this machine can run, how fast, and what is wrong."""

import sys
from pathlib import Path

import click

from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.doctor.examine import examine


@click.command(
    cls=Program,
    examples=("irv2 doctor", "irv2 doctor best.bundle --json"),
)
@click.argument(
    "bundle", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--listen", default="127.0.0.1:8500", metavar="HOST:PORT",
              help="Where a server is to listen.")  # fmt: skip
@click.option("--http", metavar="HOST:PORT", help="Where its /metrics are to be.")
@click.option("--timeout-s", type=FloatRange(0.1), default=4.0,
              help="Time for all libraries to load, side by side.")  # fmt: skip
@json_option
def main(
    bundle: Path | None, listen: str, http: str | None, timeout_s: float, as_json: bool
) -> None:
    """Say what is installed and runs here, what is wrong, and the way out.

    With BUNDLE also what a server would take of it, how fast that was when it was judged, and why
    nothing faster. Each line begins with ok, note or problem; with a problem the exit status is 1.
    Nothing is written or asked of a network.
    """
    report = examine(bundle, listen, http, timeout_s)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(report.to_text())
    sys.exit(report.exit_code)
