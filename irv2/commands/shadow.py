"""`irv2 shadow`: how often a second model agrees with the one that a server uses."""

import ssl
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

import click

from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.errors import Irv2Error, ParityError, UsageError
from irv2.measures.shadow import ShadowReport
from irv2.system.address import host_and_port, way_out

TIMEOUT_S = 10.0


@click.command(cls=Program, examples=("irv2 shadow 127.0.0.1:8501",))
@click.argument("address", metavar="HOST:PORT")
@click.option("--max-disagreement", type=FloatRange(0, 100, min_open=True), metavar="POINTS",
              help="Pictures that may get another best class, in percent.  "
              "[default: the server's]")  # fmt: skip
@click.option("--tls", is_flag=True, help="Encrypt, and trust the public authorities.")
@click.option("--tls-ca", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="FILE",
              help="Encrypt, and trust a certificate signed by one of these, PEM.")  # fmt: skip
@json_option
def main(
    address: str, max_disagreement: float | None, tls: bool, tls_ca: Path | None, as_json: bool
) -> None:
    """Say whether the shadow of a server gives the served model's answers.

    HOST:PORT is the server's --http. The verdict is the gate's, on live pictures: passed, failed,
    or too few images. Nobody has labelled them, so it is about agreement and not accuracy. Exit
    status 0 if it passed, else 3.
    """
    report = read_report(address, tls=tls, tls_ca=tls_ca)
    limit = report.limit_percent if max_disagreement is None else max_disagreement
    if as_json:
        print_json(report.to_json(limit))
    else:
        click.echo(report.to_text(limit))
    if report.agreement.verdict(limit) != "passed":
        sys.exit(ParityError.exit_code)


def read_report(address: str, *, tls: bool = False, tls_ca: Path | None = None) -> ShadowReport:
    """Read what the server at this HTTP port tells of its shadow. Raises Irv2Error."""
    if host_and_port(address) is None:
        raise UsageError("address", repr(address), "HOST:PORT of --http", way_out(address))
    context = _tls_context(tls_ca) if tls or tls_ca else None
    try:
        report = ShadowReport.read(_metrics(address, context))
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        expected = "/metrics of irv2-serve, on the port of --http"
        way = "add --tls or --tls-ca if it is encrypted" if context is None else ""
        raise Irv2Error(address, f"no metrics there ({reason})", expected, way) from error
    if report is None:
        raise UsageError(address, "has no shadow", "a server started with --shadow BUNDLE")
    return report


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    """Trust these authorities, or the public ones. Raises UsageError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise UsageError(ca, f"no certificates ({error.reason})", "PEM") from error


def _metrics(address: str, context: ssl.SSLContext | None) -> str:
    """Return the text of /metrics; the address is taken literally, whatever proxy there is."""
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=context))
    url = f"{'https' if context else 'http'}://{address}/metrics"
    with opener.open(url, timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text
