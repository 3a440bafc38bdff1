"""`irv2 data`: make data folders."""

from pathlib import Path

import click

from irv2.cli.options import bad_images_option, json_option, print_json
from irv2.cli.program import Program, ProgramGroup
from irv2.data import samples
from irv2.data.dataset import BadImages
from irv2.data.shard_writer import write_shards

out_option = click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="New folder for train/CLASS/* and val/CLASS/*.",
)  # fmt: skip


@click.group(cls=ProgramGroup)
def main() -> None:
    """Make data folders: train/CLASS/*, val/CLASS/*."""


@main.command(cls=Program)
@out_option
@json_option
def sample(out: Path, as_json: bool) -> None:
    """Write the built-in sample, scikit-learn's 1797 handwritten digits, for a look."""
    _report(out, samples.write_digits(out), as_json)


@main.command("fashion-mnist", cls=Program)
@click.option(
    "--source", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR", help="Folder with the IDX files of Debian's package dataset-fashion-mnist.",
)  # fmt: skip
@out_option
@json_option
def fashion_mnist(source: Path, out: Path, as_json: bool) -> None:
    """Write Fashion-MNIST, 70,000 grey images of 28x28 pixels in 10 classes, as PNG."""
    _report(out, samples.write_fashion_mnist(source, out), as_json)


@main.command(cls=Program)
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--shard-mb", type=click.IntRange(1), default=256, metavar="MB",
    help="Size at which a shard is closed, in megabytes.",
)  # fmt: skip
@bad_images_option
@json_option
def shard(source: Path, out: Path, shard_mb: int, bad_images: BadImages, as_json: bool) -> None:
    """Write the image folder SOURCE as tar shards (WebDataset's layout) into the new folder OUT.

    OUT is then a data folder like SOURCE: both train the same, image for image. Every image is
    decoded, on all cores; those that can't be are all named, and nothing is written unless
    --bad-images skip leaves them out.
    """
    _report(out, write_shards(source, out, shard_mb * 10**6, bad_images), as_json)


def _report(out: Path, num_images: int, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), "num_images": num_images})
    else:
        click.echo(f"{num_images} images in {out}")
