"""`irv2 push` and `irv2 pull`: bundles in a registry of container images."""

from pathlib import Path

import click

from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program
from irv2.delivery.reference import Reference


@click.command(
    cls=Program,
    examples=("irv2 push best.bundle oci://registry.example/flowers:1",),
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("reference", metavar="oci://HOST/NAME:TAG")
@json_option
def push(bundle: Path, reference: str, as_json: bool) -> None:
    """Upload BUNDLE to a registry and print where it lies there, by digest.

    It is an image with the files in /models, and a CNCF ModelPack. Registries on this machine are
    spoken to without TLS. Who we are is taken from docker's configuration.
    """
    from irv2.delivery.image import push as run_push

    place = run_push(bundle, Reference.parse(reference))
    print_json({"reference": str(place)}) if as_json else click.echo(str(place))


@click.command(
    cls=Program,
    examples=("irv2 pull oci://registry.example/flowers:1 flowers.bundle",),
)
@click.argument("reference", metavar="oci://HOST/NAME[:TAG][@sha256:DIGEST]")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@json_option
def pull(reference: str, folder: Path, as_json: bool) -> None:
    """Download a bundle to DIR, whole or not at all, and print where it lies, by digest."""
    from irv2.delivery.image import pull as run_pull

    place = run_pull(Reference.parse(reference), folder)
    if as_json:
        print_json({"reference": str(place), "bundle": str(folder)})
    else:
        click.echo(f"{folder}: {place}")
