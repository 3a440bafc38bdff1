"""`irv2 batch`: classify any number of files into one Parquet file."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program
from irv2.cli.server_options import CONNECTION, connect, connection_options
from irv2.errors import EngineError, UsageError
from irv2.results import DEFAULT_TOP_K
from irv2.system.files import check_folder_of
from irv2.system.stop import raise_if_stopped

if TYPE_CHECKING:
    from irv2.batch.run import Answerer
    from irv2.batch.source import Source


@click.command(
    cls=Program,
    sections={
        "Who classifies": "server bundle ray",
        "How": "top-k workers as-listed",
        "Connection": CONNECTION,
    },
    examples=(
        "irv2 batch pictures answers.parquet --bundle best.bundle",
        "irv2 batch pictures answers.parquet --server 10.0.0.1:8500,10.0.0.2:8500",
    ),
)
@click.argument("src", type=click.Path(exists=True, path_type=Path), metavar="DIR_or_CSV")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT.parquet")
@click.option("--server", metavar="HOST:PORT[,...]",
              help="Ask this server, or each of these as fast as it answers.")  # fmt: skip
@connection_options
@click.option("--bundle", type=click.Path(path_type=Path), metavar="DIR",
              help="Classify here, with the artefact that a server would choose.")  # fmt: skip
@click.option("--ray", metavar="HOST:PORT",
              help="With --bundle: classify on every node of this Ray cluster.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1, 2**31 - 1), default=DEFAULT_TOP_K, metavar="N",
              help="Number of classes per image.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), metavar="N",
              help="Threads that read files, and with --bundle decode them.  "
              "[default: one per core; 16 with --server]")  # fmt: skip
@click.option("--as-listed", is_flag=True,
              help="Go on with the files that were listed at the start, whatever there is now."
              )  # fmt: skip
@json_option
def main(
    src: Path,
    out: Path,
    server: str | None,
    bundle: Path | None,
    ray: str | None,
    top_k: int,
    workers: int | None,
    as_listed: bool,
    as_json: bool,
    **connection: Any,  # noqa: ANN401 (click checked each)
) -> None:
    """Classify each image file of a folder, at any depth and in shards, or of a list.

    OUT.parquet has a row for each file: its name in the folder, sha256, classes, probabilities,
    error, model_id. It appears when all is done. Until then the rows are in OUT.parquet.parts, and
    the same command goes on where the last one ended, however that was.

    Exit status 1 if any file could not be classified; the others are classified all the same.
    """
    if bool(server) == bool(bundle):
        got = ("both --server and" if server else "neither --server nor") + " --bundle given"
        raise UsageError("batch", got, "one of them", "pass --server HOST:PORT or --bundle DIR")
    if ray and not bundle:
        raise UsageError("batch", "--ray given without --bundle", "both", "pass --bundle DIR")
    check_folder_of(out)
    from irv2.batch.run import run
    from irv2.batch.source import Source

    source = Source(src)
    with _answerer(source, server, bundle, ray, top_k, workers, connection) as answerer:
        summary = run(source, out, answerer, top_k, as_listed=as_listed)
    print_json(summary.to_json()) if as_json else click.echo(summary.to_text())
    sys.exit(1 if summary.errors else 0)


@contextmanager
def _answerer(
    source: "Source",
    server: str | None,
    bundle: Path | None,
    ray: str | None,
    top_k: int,
    workers: int | None,
    connection: dict[str, Any],
) -> "Iterator[Answerer]":
    if ray:
        try:
            from irv2.batch.on_ray import OnRay
        except ModuleNotFoundError as error:
            raise_if_stopped()
            got, way_out = f"package {error.name} is not installed", 'pip install "irv2[ray]"'
            raise EngineError("irv2 batch --ray", got, way_out=way_out) from error
        assert bundle
        with OnRay(ray, bundle, source, top_k, workers) as on_ray:
            yield on_ray
        return
    if bundle:
        from irv2.batch.here import Here

        with Here(bundle, source, top_k, workers) as here:
            yield here
        return
    assert server
    from irv2.batch.servers import Servers

    with ExitStack() as stack:
        addresses = server.split(",")
        clients = [stack.enter_context(connect(one, **connection)) for one in addresses]
        yield stack.enter_context(Servers(clients, source, top_k, workers))
