"""Sign a bundle, and believe one only if it is signed."""

from pathlib import Path

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.manifest import SIGNATURE
from irv2.system.files import write_atomically
from irv2.trust.keys import Signer, Trusted
from irv2.trust.signature import (
    Signature,
    read_signature,
    signature_json,
    signed_bytes,
    statement_json,
)


def sign(path: Path, signer: Signer) -> Signature:
    """Sign the files that lie at `path` now. Raises BundleError unless every hash holds."""
    payload = statement_json(Bundle.open(path))
    made = signer.sign(signed_bytes(payload))
    content = signature_json(payload, made, signer.fingerprint, signer.certificates_der)
    write_atomically(path / SIGNATURE, content)
    signature = read_signature(path)
    assert signature is not None
    return signature


def renew(path: Path, signer: Signer | None) -> Signature | None:
    """After a bundle has changed: sign it again or, without a signer, leave it unsigned."""
    (path / SIGNATURE).unlink(missing_ok=True)  # it is void
    return sign(path, signer) if signer else None


def require_signature(bundle: Bundle, trusted: Trusted) -> Signature:
    """Return the signature of an opened bundle; raises BundleError unless `trusted` vouches for it.

    Whoever can write to the folder can still change a file after this: serve from a place that
    only the deployment can write to.
    """
    signature = read_signature(bundle.path)
    if signature is None:
        got, way_out = f"is not signed: no {SIGNATURE} in it", "sign it with irv2 sign"
        raise BundleError(bundle.path, got, f"a signature that {trusted.path} verifies", way_out)
    trusted.check(signature)
    signature.check_files(bundle)
    return signature
