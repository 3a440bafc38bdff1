"""Options for signing a bundle and for believing a signature, spelt the same everywhere."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from irv2.cli.program import F
from irv2.errors import UsageError

if TYPE_CHECKING:
    from irv2.trust.keys import Signer

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

require_signature_option = click.option(
    "--require-signature", type=_FILE, metavar="FILE",
    help="Refuse bundles that were not signed with this public key, or with a certificate issued "
    "by one of these; PEM.",
)  # fmt: skip


def signing_options(command: F) -> F:
    """Add the options of `read_signer`, which makes a signer of them."""
    for option in (
        click.option("--chain", type=_FILE, metavar="FILE", multiple=True,
                     help="Certificates that issued it, PEM; may be given again."),
        click.option("--certificate", type=_FILE, metavar="FILE",
                     help="The key's certificate, PEM, for those who trust an authority."),
        click.option("--key", type=_FILE, metavar="FILE",
                     help="Private key to sign with, PEM: ECDSA on P-256, P-384 or P-521."),
    ):  # fmt: skip
        command = option(command)
    return command


def signer_of_options(
    key: Path | None, certificate: Path | None, chain: tuple[Path, ...]
) -> "Signer | None":
    """Return what signs; None where no option was given. Raises UsageError."""
    from irv2.trust.keys import read_signer

    if key is not None:
        return read_signer(key, certificate, chain)
    if certificate or chain:
        raise UsageError("--certificate and --chain", "without --key", "the certificate's key too")
    return None
