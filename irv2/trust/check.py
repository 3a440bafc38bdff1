"""Believe a bundle only if it is signed."""

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.manifest import SIGNATURE
from irv2.trust.keys import Trusted
from irv2.trust.signature import Signature, read_signature


def require_signature(bundle: Bundle, trusted: Trusted) -> Signature:
    """Return the signature of an opened bundle; raises BundleError unless `trusted` vouches for it.

    Whoever can write to the folder can still change a file after this, which who opens an engine
    must notice.
    """
    signature = read_signature(bundle.path)
    if signature is None:
        got, way_out = f"is not signed: no {SIGNATURE} in it", "sign it with irv2 sign"
        raise BundleError(bundle.path, got, f"a signature that {trusted.path} verifies", way_out)
    trusted.check(signature)
    signature.check_files(bundle)
    return signature
