"""Sign a bundle, with what it says of itself in the words of others."""

from pathlib import Path

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.manifest import SIGNATURE
from irv2.system.files import write_atomically
from irv2.trust.keys import Signer
from irv2.trust.signature import (
    Signature,
    read_signature,
    signature_json,
    signed_bytes,
    statement_json,
)
from irv2.trust.statements import BOM, CARD, CARD_BEGINS, VERDICTS, statements


def sign(path: Path, signer: Signer) -> Signature:
    """Write statements of what bundle.json says, then sign all files.

    Raises BundleError unless every hash holds, and for a model card that someone else has written.
    """
    bundle = Bundle.open(path)
    if not _is_our_card(path / CARD):
        raise BundleError(
            path / CARD, "would be replaced, and is not ours", "none", "give it another name"
        )
    for name, content in statements(bundle.manifest).items():
        write_atomically(path / name, content)
    payload = statement_json(bundle)
    made = signer.sign(signed_bytes(payload))
    content = signature_json(payload, made, signer.fingerprint, signer.certificates_der)
    write_atomically(path / SIGNATURE, content)
    signature = read_signature(path)
    assert signature is not None
    return signature


def renew(path: Path, signer: Signer | None) -> Signature | None:
    """After a bundle has changed: sign it again or, without a signer, leave it unsigned."""
    (path / SIGNATURE).unlink(missing_ok=True)  # it is void
    if signer:
        return sign(path, signer)
    for name in (VERDICTS, BOM, *([CARD] if _is_our_card(path / CARD) else [])):
        (path / name).unlink(missing_ok=True)  # they say what bundle.json said before
    return None


def _is_our_card(path: Path) -> bool:
    """Whether `irv2 sign` has made this file, or may make it."""
    return not path.exists() or path.read_bytes().startswith(CARD_BEGINS.encode())
