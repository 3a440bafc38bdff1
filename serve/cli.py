"""`irv2-serve`: the command line of the server."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from irv2.cli.options import FloatRange, json_option, json_text, percent
from irv2.cli.program import Program
from irv2.cli.signing_options import require_signature_option
from irv2.errors import UsageError
from irv2.runners.backends import BACKENDS, THREADS_PER_STREAM
from irv2.serve.access.address import Address, parse_listen
from irv2.serve.access.connection_limits import MAX_CONNECTION_AGE_S, ConnectionLimits
from irv2.serve.access.tls import tls_files
from irv2.serve.front_ends.choose import AUTO, IMAGES_PER_S, MAX_FRONT_ENDS
from irv2.serve.operations.background import print_in_background
from irv2.serve.operations.logs import log_there, print_as_it_is, take_over_stderr
from irv2.serve.options import ServeOptions, ShadowOptions
from irv2.system.gpu import count_gpus

if TYPE_CHECKING:
    from irv2.serve.server import Server

logger = logging.getLogger(__name__)

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NUM_THREADS = click.IntRange(0, 1024)
_COUNT = click.IntRange(1, 2**31 - 1)  # gRPC's and protobuf's int
_NUM_CONNECTIONS = click.IntRange(1, 2**31 - 2)  # one more makes gRPC abort


def _read_gpus(context: click.Context, parameter: click.Parameter, text: str) -> int:
    if text == "all":
        return count_gpus()
    if not text.isdecimal() or int(text) == 0:
        raise UsageError("--gpus", text, "1 or more, or all")
    return int(text)


def _read_streams(context: click.Context, parameter: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not 0 < int(text) <= 1024:
        raise UsageError("--streams", text, "1 to 1024, or auto")
    return int(text)


def _read_front_ends(context: click.Context, parameter: click.Parameter, text: str) -> int:
    if text == "auto":
        return AUTO
    if not text.isdecimal() or not 0 < int(text) <= MAX_FRONT_ENDS:
        raise UsageError("--front-ends", text, f"1 to {MAX_FRONT_ENDS}, or auto")
    return int(text)


def _fetch(context: click.Context, parameter: click.Parameter, text: str | None) -> Path | None:
    """The bundle's folder; what a registry has is fetched to the cache first."""
    if text is None:
        return None
    if not text.startswith("oci://"):
        return Path(text)
    from irv2.delivery.image import pull_to_cache
    from irv2.delivery.reference import Reference

    reference = Reference.parse(text)
    if reference.digest is None:
        way_out = "irv2 push and irv2 pull print it; a tag may be moved"
        raise UsageError(text, "names a tag", "...@sha256:DIGEST", way_out)
    return pull_to_cache(reference)


def _take_over_stderr(context: click.Context, parameter: click.Parameter, log_format: str) -> str:
    take_over_stderr(as_json=log_format == "json")
    return log_format


@click.command(
    cls=Program,
    sections={
        "Where": "listen http no-page",
        "Who may ask, and what is believed": "insecure tls-cert tls-key tls-client-ca token-file "
        "require-signature",
        "Model and machine": "precision backend choose threads streams gpus workers front-ends",
        "Batches and deadlines": "max-batch max-queue max-queue-delay-ms default-deadline-ms",
        "New bundles, and stopping": "watch shadow shadow-share promote-after max-disagreement "
        "grace-s stop-timeout-s",
        "Limits": "max-message-bytes max-images max-image-bytes max-image-pixels max-connections "
        "max-streams max-connection-age-s",
        "Logs": "log-format log-requests",
    },
    examples=(
        "irv2-serve best.bundle --http 127.0.0.1:8501",
        "irv2-serve best.bundle --listen 0.0.0.0:8500 --tls-cert cert.pem --tls-key key.pem",
    ),
)
@click.argument("bundle", type=click.Path(), callback=_fetch)
@click.option(
    "--listen",
    default="127.0.0.1:8500",
    metavar="HOST:PORT",
    help="Address of the gRPC port; port 0 takes a free one. Or a socket, unix:PATH.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Address of the HTTP port: a page for browsers, pictures over HTTP, /metrics, /healthz, "
    "/readyz.  [default: none]",
)
@click.option(
    "--no-page", "has_page", is_flag=True, flag_value=False, default=True, show_default=False,
    help="Leave the page for browsers out of the HTTP port.",
)  # fmt: skip
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow addresses that other machines can reach, without encryption.",
)
@click.option(
    "--tls-cert", type=_FILE, metavar="FILE",
    help="Certificate chain, PEM; encrypts both ports. Reloaded when it changes.",
)  # fmt: skip
@click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key, PEM.")
@click.option(
    "--tls-client-ca", type=_FILE, metavar="FILE",
    help="Require a certificate signed by one of these, PEM, from clients.",
)  # fmt: skip
@click.option(
    "--token-file", type=_FILE, metavar="FILE",
    help="Lines NAME TOKEN: answer only calls with one as bearer token. Reloaded when it changes.",
)  # fmt: skip
@require_signature_option
@click.option(
    "--watch", is_flag=True,
    help="Serve a new bundle soon after it appears at BUNDLE; SIGHUP does so at once.",
)  # fmt: skip
@click.option(
    "--shadow", type=click.Path(), metavar="BUNDLE", callback=_fetch,
    help="Run a second bundle on a share of the pictures while nobody waits, and count how often "
    "it agrees; `irv2 shadow` and /metrics tell.",
)  # fmt: skip
@click.option(
    "--shadow-share", metavar="PERCENT", callback=percent(all_of_it=True),
    help="That share.  [default: 5%]",
)  # fmt: skip
@click.option(
    "--promote-after", type=_COUNT, metavar="N",
    help="Serve the shadow once it was compared on N pictures and keeps --max-disagreement.  "
    "[default: never]",
)  # fmt: skip
@click.option(
    "--max-disagreement", type=FloatRange(0, 100, min_open=True), metavar="POINTS",
    help="Pictures that may get another best class from the shadow, in percent.  [default: 1.0]",
)  # fmt: skip
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    help="Precision to serve.  [default: the fastest that passed the parity gate]",
)
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    help="Backend to run the model with.  [default: the fastest here]",
)
@click.option(
    "--threads",
    type=_NUM_THREADS,
    default=0,
    help="Threads of the engine on a CPU; 0: one per core, or as many as a quota allows.",
)
@click.option(
    "--choose",
    type=click.Choice(["recorded", "measure"]),
    default="recorded",
    help="Serve what was fastest on such a processor when the bundle was judged, or measure all "
    "that may be served at the start, some seconds each.",
)
@click.option(
    "--streams", "num_streams", default="auto", metavar="N|auto", callback=_read_streams,
    help="Batches that a CPU runs at once, each on its part of the threads; auto: one for every "
    f"{THREADS_PER_STREAM} threads, with OpenVINO for each.",
)  # fmt: skip
@click.option(
    "--gpus", "num_gpus", default="1", metavar="N|all", callback=_read_gpus,
    help="Number of GPUs that share each batch, counted from the first.",
)  # fmt: skip
@click.option(
    "--workers",
    type=_NUM_THREADS,
    default=0,
    help="Threads that decode images; 0: one per core, or as many as a quota allows.",
)
@click.option(
    "--front-ends", "num_front_ends", default="1", metavar="N|auto", callback=_read_front_ends,
    help="Processes that answer gRPC and decode, in front of one engine; auto: one for every "
    f"{IMAGES_PER_S} images/s that were recorded of it.",
)  # fmt: skip
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    metavar="N",
    help="Images per batch, over all GPUs.  [default: 8 on a CPU, 4 with OpenVINO, else what the "
    "gate certified per GPU]",
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
    type=FloatRange(0),
    default=0.0,
    help="How long an idle engine waits for a fuller batch.",
)
@click.option(
    "--default-deadline-ms",
    type=_COUNT,
    default=10_000,
    help="Time for a request that sets no deadline.",
)
@click.option(
    "--grace-s",
    type=FloatRange(0),
    default=5.0,
    help="How long to go on after SIGTERM while load balancers notice.",
)
@click.option(
    "--stop-timeout-s", type=FloatRange(0), default=60.0,
    help="How long open requests may take after that, each until its own deadline.",
)  # fmt: skip
@click.option(
    "--max-message-bytes",
    type=_COUNT,
    default=64 * 2**20,
    help="Limit on one request.",
)
@click.option(
    "--max-images",
    type=_COUNT,
    default=64,
    help="Limit on the images of one request.",
)
@click.option(
    "--max-image-bytes",
    type=_COUNT,
    default=16 * 2**20,
    help="Limit on one encoded image.",
)
@click.option(
    "--max-image-pixels",
    type=_COUNT,
    default=64_000_000,
    help="Limit on width times height of one image.",
)
@click.option(
    "--max-connections", type=_NUM_CONNECTIONS, default=1000, metavar="N",
    help="gRPC connections at a time; more are closed at once.",
)  # fmt: skip
@click.option(
    "--max-streams", type=_COUNT, default=1000, metavar="N",
    help="Open calls per connection; more wait in the client, or fail there (UNAVAILABLE).",
)  # fmt: skip
@click.option(
    "--max-connection-age-s", type=FloatRange(0, MAX_CONNECTION_AGE_S), default=0.0,
    help="Ask clients to reconnect after this long, so that new servers get some; 0: never.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text",
    is_eager=True, callback=_take_over_stderr,  # before other options are found wrong
    help="Format of the lines on stderr.",
)  # fmt: skip
@click.option("--log-requests", is_flag=True, help="Log a line per request: id, outcome, times.")
@json_option
def main(
    bundle: Path,
    listen: str,
    http: str | None,
    threads: int,
    workers: int,
    as_json: bool,
    shadow: Path | None,
    shadow_share: float | None,
    promote_after: int | None,
    max_disagreement: float | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    log_format: str,
    max_connections: int,
    max_streams: int,
    max_connection_age_s: float,
    **settings: Any,  # noqa: ANN401 (click checked each)
) -> None:
    """Serve BUNDLE over gRPC until SIGTERM or Ctrl-C.

    BUNDLE is a folder, or oci://HOST/NAME@sha256:DIGEST in a registry.

    Print one line `ready HOST:PORT ...` on stderr once requests are answered, in any format, and
    with --json the same as an object on stdout. SIGTERM: health says NOT_SERVING, requests are
    answered through the grace period, open ones are finished by their deadlines, exit 0. SIGHUP:
    load the bundle that lies at BUNDLE now, test it, and switch to it; if that fails, go on with
    the old one.
    """
    from irv2.serve.server import serve

    log_there()
    options = ServeOptions(
        listen=parse_listen(listen, "--listen"),
        http=Address.parse(http, "--http") if http else None,
        num_threads=threads,
        num_decode_threads=workers,
        tls=tls_files(tls_cert, tls_key, tls_client_ca),
        connections=ConnectionLimits(
            max_connections=max_connections,
            max_streams=max_streams,
            max_connection_age_s=max_connection_age_s,
        ),
        shadow=_shadow_options(shadow, shadow_share, promote_after, max_disagreement),
        **settings,
    )

    def on_ready(server: "Server") -> None:
        if as_json:
            print_in_background(json_text(server.description), _tell_unprinted)
        print_as_it_is(server.ready_line)
        if log_format == "json":
            logger.info(server.ready_line)

    sys.exit(serve(bundle, options, on_ready))


def _shadow_options(
    bundle: Path | None,
    share_percent: float | None,
    promote_after: int | None,
    max_disagreement_points: float | None,
) -> ShadowOptions | None:
    settings: dict[str, Any] = {
        "share_percent": share_percent,
        "promote_after": promote_after,
        "max_disagreement_points": max_disagreement_points,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if bundle is not None:
        return ShadowOptions(bundle=bundle, **given)
    if given:
        what = "--shadow-share, --promote-after and --max-disagreement"
        raise UsageError(what, "without --shadow", "the second bundle too")
    return None


def _tell_unprinted(error: OSError) -> None:
    logger.warning("stdout_failed error=%s", error)
