"""The options of programs that connect to a server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from irv2.cli.program import F
from irv2.errors import UsageError

if TYPE_CHECKING:
    from irv2.client import Client

CONNECTION = "tls tls-ca tls-cert tls-key tls-server-name token-file"  # their section of a help
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def connection_options(command: F) -> F:
    """Add the options for TLS and a token, named like the arguments of `connect`."""
    for option in (
        click.option("--token-file", type=_FILE, metavar="FILE",
                     help="File that holds the token and nothing else."),
        click.option("--tls-server-name", metavar="NAME",
                     help="Name in the server's certificate.  [default: the first host]"),
        click.option("--tls-key", type=_FILE, metavar="FILE",
                     help="Private key of --tls-cert, PEM."),
        click.option("--tls-cert", type=_FILE, metavar="FILE",
                     help="Client certificate, for servers that ask for one, PEM."),
        click.option("--tls-ca", type=_FILE, metavar="FILE",
                     help="Encrypt, and trust servers with a certificate signed by these, PEM."),
        click.option("--tls", is_flag=True, help="Encrypt, and trust the public authorities."),
    ):  # fmt: skip
        command = option(command)
    return command


def connect(
    addresses: str,
    *,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str | None,
    token_file: Path | None,
) -> "Client":
    """Return a client of HOST:PORT[,...] or unix:PATH; plaintext unless a TLS option is given."""
    from irv2.client import Client, Tls

    encrypted = tls or tls_ca or tls_cert or tls_key or tls_server_name
    return Client(
        addresses.split(","),
        tls=Tls(ca=tls_ca, certificate=tls_cert, key=tls_key, server_name=tls_server_name)
        if encrypted
        else None,
        token=read_token(token_file) if token_file else None,
    )


def read_token(path: Path) -> str:
    """Read a file that holds one token. Raises UsageError, whose text never shows the token."""
    from irv2.protocol import is_token

    words = path.read_text("utf-8-sig", "replace").split()
    if not all(map(is_token, words)):
        raise UsageError(path, "not printable ASCII", "a file that holds one token alone")
    if len(words) != 1:
        raise UsageError(path, f"{len(words)} words", "a file that holds one token alone")
    return words[0]
