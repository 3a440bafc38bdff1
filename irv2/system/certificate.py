"""What a certificate of a server or client says of itself: its kind of key, and when it is valid.

Python's `ssl` tells neither for a certificate of one's own. Import this module where TLS is used:
`cryptography` takes 11 MB and 40 ms.
"""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509.oid import PublicKeyAlgorithmOID

from irv2.errors import UsageError

_SERVED = "an RSA key of 2048 bits or more, or an ECDSA key on P-256 or P-384"
_OTHER_KEYS = {
    PublicKeyAlgorithmOID.ED25519: "an Ed25519 key",
    PublicKeyAlgorithmOID.ED448: "an Ed448 key",
    PublicKeyAlgorithmOID.RSASSA_PSS: "an RSA-PSS key",
}
_NIST_NAMES = {"secp224r1": "P-224", "secp521r1": "P-521"}  # as the users of a curve call it


def check_key(certificate: Path) -> None:
    """Raise UsageError where gRPC's servers and clients can do nothing with the kind of key.

    gRPC itself would say so at a handshake, to the other side alone. A table of docs/serving.md,
    and the test that makes it, tells what gRPC does with each kind. RSA keys that are too short it
    takes, but OpenSSL does not.
    """
    if got := _fault_of_key(_load(certificate)):
        way_out = "have the certificate issued for such a key"
        raise UsageError(certificate, got, _SERVED, way_out)


def not_valid_at(certificate: Path, now: datetime) -> str | None:
    """Say that the certificate has expired, or is of no use yet; None while it is valid."""
    loaded = _load(certificate)
    begin, end = loaded.not_valid_before_utc, loaded.not_valid_after_utc
    if now > end:
        return f"expired at {end.isoformat()}"
    return f"not valid before {begin.isoformat()}" if now < begin else None


def _load(certificate: Path) -> x509.Certificate:
    """Read the first certificate in a PEM file, which is the owner's."""
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes())
    except ValueError as error:  # OpenSSL also reads "TRUSTED CERTIFICATE", gRPC does not
        got = "no certificate that can be read"
        raise UsageError(certificate, got, "a PEM file with BEGIN CERTIFICATE") from error


def _fault_of_key(certificate: x509.Certificate) -> str | None:
    algorithm = certificate.public_key_algorithm_oid
    kind = _OTHER_KEYS.get(algorithm, "a key of another kind")
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):  # a rare curve or algorithm
        key = None
    if isinstance(key, RSAPublicKey) and algorithm not in _OTHER_KEYS:
        return None if key.key_size >= 2048 else "an RSA key that is too short"
    if isinstance(key, EllipticCurvePublicKey):
        if isinstance(key.curve, SECP256R1 | SECP384R1):
            return None
        kind = f"an ECDSA key on {_NIST_NAMES.get(key.curve.name, key.curve.name)}"
    return f"{kind}, with which gRPC makes no connection"
