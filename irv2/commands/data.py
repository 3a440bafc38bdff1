"""`irv2 data`: make data folders, divide them, find what is wrong with them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from irv2.cli.options import bad_images_option, json_option, percent, print_json
from irv2.cli.program import Program, ProgramGroup
from irv2.errors import UsageError
from irv2.system.files import check_folder_of

if TYPE_CHECKING:
    from irv2.data.dataset import BadImages
    from irv2.data.split import Link

out_option = click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="New folder for train/CLASS/* and val/CLASS/*.",
)  # fmt: skip


@click.group(cls=ProgramGroup)
def main() -> None:
    """Make, divide and check data folders: train/CLASS/*, val/CLASS/*."""


@main.command(
    cls=Program,
    examples=("irv2 data sample --out digits",),
)
@out_option
@json_option
def sample(out: Path, as_json: bool) -> None:
    """Write the built-in sample, scikit-learn's 1797 handwritten digits, for a look."""
    from irv2.data.samples import write_digits

    _report(out, write_digits(out), as_json)


@main.command(
    "fashion-mnist",
    cls=Program,
    examples=("irv2 data fashion-mnist --source /usr/share/datasets/fashion-mnist --out fashion",),
)
@click.option(
    "--source", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR", help="Folder with the IDX files of Debian's package dataset-fashion-mnist.",
)  # fmt: skip
@out_option
@json_option
def fashion_mnist(source: Path, out: Path, as_json: bool) -> None:
    """Write Fashion-MNIST, 70,000 grey images of 28x28 pixels in 10 classes, as PNG."""
    from irv2.data.samples import write_fashion_mnist

    _report(out, write_fashion_mnist(source, out), as_json)


@main.command(
    cls=Program,
    examples=("irv2 data shard pictures shards",),
)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--shard-mb", type=click.IntRange(1), default=256, metavar="MB",
    help="Size at which a shard is closed, in megabytes.",
)  # fmt: skip
@bad_images_option
@json_option
def shard(source: Path, out: Path, shard_mb: int, bad_images: "BadImages", as_json: bool) -> None:
    """Write SOURCE as tar shards (WebDataset's layout) into the new folder OUT.

    SOURCE is a data folder or a list. OUT is then a data folder like it: both train the same, image
    for image. Every image is decoded, on all cores; those that can't be are all named, and nothing
    is written unless --bad-images skip leaves them out.
    """
    from irv2.data.shard_writer import write_shards

    _report(out, write_shards(source, out, shard_mb * 10**6, bad_images), as_json)


@main.command(
    cls=Program,
    examples=("irv2 data split sorted pictures --val 15% --test 10%",),
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--val", callback=percent(), default="15%", metavar="PERCENT",
              help="Share of each class for validation.")  # fmt: skip
@click.option("--test", callback=percent(), metavar="PERCENT",
              help="Share of each class for a test at the end.  [default: none]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N",
              help="Another seed divides otherwise.")  # fmt: skip
@click.option(
    "--link", type=click.Choice(["hard", "symbolic", "copy"]), default="hard",
    help="How files come into OUT; linked ones take no space.",
)  # fmt: skip
@bad_images_option
@json_option
def split(
    source: Path,
    out: Path,
    val: float,
    test: float | None,
    seed: int,
    link: "Link",
    bad_images: "BadImages",
    as_json: bool,
) -> None:
    """Divide SOURCE into OUT/train, OUT/val and maybe OUT/test.

    SOURCE is a folder of class folders, or a list with columns path,label. If OUT is named .csv, it
    becomes a list with a column split. Copies of a picture, near ones too, are on one side.
    """
    from irv2.data.split import split as run_split  # with imagehash

    if val + (test or 0) >= 100:
        raise UsageError("--val and --test", f"{val + (test or 0):g} %", "less than 100 % together")
    shares = {"val": val} | ({"test": test} if test else {})
    division = run_split(source, out, shares, seed=seed, link=link, bad_images=bad_images)
    if as_json:
        print_json(division.to_json())
    else:
        click.echo(division.to_text())


@main.command(
    cls=Program,
    examples=("irv2 data check pictures -o sheet.png",),
)
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "sheet_path", type=click.Path(dir_okay=False, path_type=Path), metavar="PNG",
              help="Draw pictures too: wrong copies first, then some of each class.")  # fmt: skip
@json_option
def check(data: Path, sheet_path: Path | None, as_json: bool) -> None:
    """Look at every image of DATA, a data folder, shards or a list, on all cores.

    Exit status 1 where training would be wrong: unreadable images, a picture in two splits or under
    two labels (near copies count), classes of val that train lacks, only one class, no train or
    val.
    """
    from irv2.data.check import check as run_check  # with imagehash

    if sheet_path is not None:
        check_folder_of(sheet_path)
    report = run_check(data, sheet_path)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(report.to_text())
    sys.exit(report.exit_code)


def _report(out: Path, num_images: int, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), "num_images": num_images})
    else:
        click.echo(f"{num_images} images in {out}")
