"""What a certificate of a server or client says of itself: its kind of key, and when it is valid.

Python's `ssl` tells neither for a certificate of one's own, and for these two facts the server
would need another library. Both are found by their DER encodings (RFC 5280, 3279, 5480, 8410).
"""

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

from irv2.errors import UsageError

SERVED = "an RSA key of 2048 bits or more, or an ECDSA key on P-256 or P-384"

# Algorithm and parameters of a public key. A table of docs/serving.md, and the test that makes it,
# tells what gRPC does with each; OpenSSL has refused RSA keys that are too short before.
_SERVED_KEYS = tuple(
    map(
        bytes.fromhex,
        (
            "300d06092a864886f70d0101010500",  # RSA
            "301306072a8648ce3d020106082a8648ce3d030107",  # P-256
            "301006072a8648ce3d020106052b81040022",  # P-384
        ),
    )
)
_OTHER_KEYS = {
    bytes.fromhex("06032b6570"): "an Ed25519 key",
    bytes.fromhex("06032b6571"): "an Ed448 key",
    bytes.fromhex("06052b81040021"): "an ECDSA key on P-224",
    bytes.fromhex("06052b81040023"): "an ECDSA key on P-521",
    bytes.fromhex("06052b8104000a"): "an ECDSA key on secp256k1",
    bytes.fromhex("06092a864886f70d01010a"): "an RSA-PSS key",
}
_BIT_STRING = b"\x03"  # what follows a key's algorithm, and no other algorithm of these

_TIME = rb"(?:\x17\x0d|\x18\x0f)([0-9]{12,14})Z"  # UTCTime or GeneralizedTime
_VALIDITY = re.compile(_TIME + _TIME)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def check_key(certificate: Path) -> None:
    """Raise UsageError where gRPC's servers and clients can do nothing with the kind of key.

    gRPC itself would say so at a handshake, to the other side alone.
    """
    der = _first(certificate)
    if any(key + _BIT_STRING in der for key in _SERVED_KEYS):
        return
    found = (name for key, name in _OTHER_KEYS.items() if key in der)
    got = f"{next(found, 'a key of another kind')}, with which gRPC makes no connection"
    raise UsageError(certificate, got, SERVED, "have the certificate issued for such a key")


def not_valid_at(certificate: Path, now: datetime) -> str | None:
    """Say that the certificate has expired, or is of no use yet; None while it is valid."""
    match = _VALIDITY.search(_first(certificate))
    assert match, "OpenSSL has read it"
    begin, end = map(_time, match.groups())
    if now > end:
        return f"expired at {end.isoformat()}"
    return f"not valid before {begin.isoformat()}" if now < begin else None


def _first(certificate: Path) -> bytes:
    """The DER of the first certificate in a PEM file, which is the owner's."""
    match = _PEM.search(certificate.read_text("ascii", "replace"))
    if match is None:  # OpenSSL also reads "TRUSTED CERTIFICATE", gRPC does not
        raise UsageError(certificate, "no line BEGIN CERTIFICATE", "a PEM file")
    return ssl.PEM_cert_to_DER_cert(match[0])


def _time(text: bytes) -> datetime:
    """Read YYMMDDhhmmss, of 1950 to 2049, or YYYYMMDDhhmmss."""
    digits = text.decode()
    if len(digits) == 12:
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
