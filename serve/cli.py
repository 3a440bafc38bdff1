"""`irv2-serve`: the command line of the server."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from irv2.options import Program, json_option, print_json

# Before gRPC is imported: its C core would add lines of its own to our one-line errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from serve.address import Address
from serve.server import ServeOptions, Server, serve


@click.command(cls=Program)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--listen",
    default="127.0.0.1:8500",
    metavar="HOST:PORT",
    help="Where gRPC listens; port 0 takes a free one.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Where HTTP serves /metrics, /healthz and /readyz.  [default: nowhere]",
)
@click.option(
    "--insecure", is_flag=True, help="Allow addresses beyond this machine, without encryption."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="Serve this one.  [default: the fastest that passed the parity gate]",
)
@click.option(
    "--backend",
    metavar="NAME",
    help="Serve with onnxruntime-cpu, onnxruntime-cuda, tensorrt or tensorrt_rtx.  "
    "[default: the fastest here]",
)
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads of the engine; 0: one per core."
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    help="Threads that decode images; 0: one per core.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    metavar="N",
    help="Images per batch.  [default: 8 on a CPU, else what the gate certified]",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1),
    default=256,
    metavar="N",
    help="Images that may wait; more are refused at once.",
)
@click.option(
    "--max-queue-delay-ms",
    type=click.FloatRange(0),
    default=0.0,
    help="How long an idle engine waits for a fuller batch.",
)
@click.option(
    "--default-deadline-ms",
    type=click.IntRange(1),
    default=10_000,
    help="Time for a request that names no deadline.",
)
@click.option(
    "--grace-s",
    type=click.FloatRange(0),
    default=5.0,
    help="How long SIGTERM leaves load balancers to notice.",
)
@click.option(
    "--max-message-bytes",
    type=click.IntRange(1, 2**31 - 1),
    default=64 * 2**20,
    help="Limit on one request.",
)
@click.option(
    "--max-images",
    type=click.IntRange(1, 2**31 - 1),
    default=64,
    help="Limit on the images of one request.",
)
@click.option(
    "--max-image-bytes",
    type=click.IntRange(1),
    default=16 * 2**20,
    help="Limit on one encoded image.",
)
@click.option(
    "--max-image-pixels",
    type=click.IntRange(1),
    default=64_000_000,
    help="Limit on width times height of one image.",
)
@json_option
def main(
    bundle: Path, listen: str, http: str | None, threads: int, workers: int, as_json: bool,
    **settings: Any,  # noqa: ANN401 (click checked each)
) -> None:  # fmt: skip
    """Serve BUNDLE over gRPC until SIGTERM or Ctrl-C.

    Prints one line `ready HOST:PORT ...` on stderr once requests are answered, and with --json the
    same as an object on stdout. SIGTERM: health says NOT_SERVING, requests are answered through
    the grace period, open ones are finished, exit 0.
    """
    options = ServeOptions(
        listen=Address.parse(listen, "--listen"),
        http=Address.parse(http, "--http") if http else None,
        num_threads=threads,
        num_decode_threads=workers,
        **settings,
    )

    def on_ready(server: Server) -> None:
        click.echo(server.ready_line, err=True)
        if as_json:
            print_json(server.description)

    sys.exit(serve(bundle, options, on_ready))
