"""`irv2 report`: one page about runs and bundles, to attach to a release."""

from pathlib import Path

import click

from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program
from irv2.cli.signing_options import require_signature_option
from irv2.errors import UsageError
from irv2.images.contact_sheet import MAX_PICTURES
from irv2.system.files import check_folder_of, write_atomically

SUFFIXES = (".html", ".htm")


@click.command(
    cls=Program,
    examples=(
        "irv2 report runs/first best.bundle -o report.html",
        "irv2 report runs/first best.bundle --data pictures --bench engines.json -o report.html",
    ),
)
@click.argument(
    "folders", nargs=-1, required=True, metavar="RUN_or_BUNDLE...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)  # fmt: skip
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False),
              metavar="HTML", help="Page to write.")  # fmt: skip
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR|CSV", envvar="IRV2_DATA",
    show_envvar=True,
    help="The images that the bundles were judged on, to show some; else there are no pictures.",
)  # fmt: skip
@click.option("--pictures", type=click.IntRange(1, MAX_PICTURES), default=12, metavar="N",
              help="Pictures in each gallery.")  # fmt: skip
@click.option(
    "--bench", "benchmarks", multiple=True, metavar="JSON",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What `irv2 bench ... --json` printed; may be given again.",
)  # fmt: skip
@require_signature_option
@json_option
def main(
    folders: tuple[Path, ...],
    out: Path,
    data: Path | None,
    pictures: int,
    benchmarks: tuple[Path, ...],
    require_signature: Path | None,
    as_json: bool,
) -> None:
    """Write one page about run folders of irv2-train and bundles.

    It holds curves, confusion matrix, classes with intervals, worst pictures, verdicts, flips,
    rates and where all came from. What was not measured, it says. It needs nothing else to be read
    and prints on A4.
    """
    from irv2.report.measured import read_benchmark
    from irv2.report.report import ReportOptions, make_report
    from irv2.report.sources import read_sources

    if out.suffix not in SUFFIXES:
        raise UsageError("--out", str(out), f"a name that ends in {' or '.join(SUFFIXES)}")
    check_folder_of(out)
    options = ReportOptions(
        data=data,
        num_pictures=pictures,
        benchmarks={path.name: read_benchmark(path) for path in benchmarks},
    )
    sources = read_sources(folders, require_signature)
    report = make_report(sources, options)
    write_atomically(out, report.content)
    if as_json:
        print_json(
            {
                "out": str(out),
                "runs": [run.name for run in sources.runs],
                "bundles": [published.name for published in sources.bundles],
                "lacking": report.lacking,
            }
        )
    else:
        click.echo(str(out))
