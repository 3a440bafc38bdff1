"""`irv2 sign`: sign a bundle, so that anyone can check offline who answers for it."""

from pathlib import Path

import click

from irv2.cli.options import json_option, print_json
from irv2.cli.program import Program
from irv2.cli.signing_options import signer_of_options, signing_options
from irv2.errors import UsageError
from irv2.manifest import SIGNATURE


@click.command(
    cls=Program,
    examples=("irv2 sign best.bundle --key key.pem",),
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@signing_options
@json_option
def main(
    bundle: Path,
    key: Path | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Sign every file of BUNDLE, as it lies there, and write BUNDLE/model.sig.

    OpenSSF Model Signing 1.0, with --key alone or with its --certificate. Nothing is asked of the
    network. A signature that is there is replaced.
    """
    signer = signer_of_options(key, certificate, chain)
    if signer is None:
        raise UsageError("--key", "not given", "a private key, PEM", "see docs/trust.md")
    from irv2.trust.keys import signer_of
    from irv2.trust.sign import sign

    who = signer_of(sign(bundle, signer))
    if as_json:
        print_json({"bundle": str(bundle), "signature": str(bundle / SIGNATURE), "signer": who})
    else:
        click.echo(f"signed {bundle}: {who}")
