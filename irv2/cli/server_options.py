"""The options by which a program names a server and how to speak to it."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from irv2.cli.program import F
from irv2.errors import UsageError

if TYPE_CHECKING:
    from irv2.client import Client

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def connection_options(command: F) -> F:
    """TLS and a token, named as the arguments of `connect`."""
    for option in (
        click.option("--token-file", type=_FILE, metavar="FILE",
                     help="File that holds a token alone."),
        click.option("--tls-server-name", metavar="NAME",
                     help="Name in the server's certificate.  [default: the first host]"),
        click.option("--tls-key", type=_FILE, metavar="FILE", help="Its private key, PEM."),
        click.option("--tls-cert", type=_FILE, metavar="FILE",
                     help="A certificate of one's own, for servers that ask for it, PEM."),
        click.option("--tls-ca", type=_FILE, metavar="FILE",
                     help="Encrypt, and trust servers whose certificate these signed, PEM."),
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
    """A client of `addresses`, HOST:PORT[,...]; plaintext unless an option says otherwise."""
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
    """The token of a file that holds nothing else. Raises UsageError, which never shows it."""
    from irv2.protocol import is_token

    words = path.read_text("ascii", "replace").split()
    if not all(map(is_token, words)):
        raise UsageError(path, "not printable ASCII", "a file that holds one token alone")
    if len(words) != 1:
        raise UsageError(path, f"{len(words)} words", "a file that holds one token alone")
    return words[0]
