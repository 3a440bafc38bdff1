"""Keys and certificates that sign bundles, and those that a verifier believes.

The specification allows ECDSA on three curves. Import this module where a signature is made or
checked: `cryptography` takes 11 MB and 40 ms.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

from irv2.errors import BundleError, UsageError
from irv2.trust.signature import Signature

_HASHES: dict[type[EllipticCurve], HashAlgorithm] = {
    SECP256R1: SHA256(),
    SECP384R1: SHA384(),
    SECP521R1: SHA512(),
}
E = TypeVar("E", bound=x509.ExtensionType)
_CURVES = "an ECDSA key on P-256, P-384 or P-521"


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and, with the certificate method, its certificate and those that issued it."""

    key: EllipticCurvePrivateKey
    certificates: tuple[x509.Certificate, ...] = ()

    @property
    def fingerprint(self) -> str:
        """What names the key in a signature."""
        return _fingerprint(self.key.public_key())

    @property
    def certificates_der(self) -> list[bytes]:
        """The certificates as a signature holds them, the signer's first."""
        return [each.public_bytes(Encoding.DER) for each in self.certificates]

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        return self.key.sign(message, _ecdsa(self.key.curve))


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whom a verifier believes: one public key, or certificate authorities."""

    path: Path
    key: EllipticCurvePublicKey | None = None
    authorities: tuple[x509.Certificate, ...] = ()

    def check(self, signature: Signature) -> None:
        """Raise BundleError unless one of them made the signature.

        A certificate must be valid now: without a trusted timestamp nobody knows when it signed.
        """
        key = self.key or self._certified_key(signature)
        expected, made_by = _fingerprint(key), signature.key_sha256
        if made_by not in ("", expected):
            got = f"was made with the key {made_by[:12]}"
            raise BundleError(signature.path, got, f"{expected[:12]}, which is {self.path}")
        try:
            key.verify(signature.signature, signature.signed_bytes, _ecdsa(key.curve))
        except InvalidSignature as error:
            raise BundleError(
                signature.path,
                "was not made with this key, or was changed",
                f"a signature that {self.path} verifies",
            ) from error

    def _certified_key(self, signature: Signature) -> EllipticCurvePublicKey:
        chain = [_der_certificate(signature.path, each) for each in signature.certificates_der]
        if not chain:
            got, expected = "was made with a bare key", f"a certificate issued by {self.path}"
            raise BundleError(signature.path, got, expected)
        if problem := _problem_of(chain[0]):
            raise BundleError(signature.path, problem, "a certificate that may sign now")
        builder = PolicyBuilder().store(Store(list(self.authorities))).time(_now())
        builder = builder.extension_policies(  # a signer's certificate need not name a host
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all()
        )
        try:
            builder.build_client_verifier().verify(chain[0], chain[1:])
        except VerificationError as error:
            got = f"its certificate, {_name(chain[0])}, is not trusted ({error})"
            raise BundleError(signature.path, got, f"one issued by {self.path}") from error
        key = chain[0].public_key()
        if not _is_supported(key):
            raise BundleError(signature.path, "a certificate for another kind of key", _CURVES)
        return key


def read_signer(key: Path, certificate: Path | None = None, chain: Sequence[Path] = ()) -> Signer:
    """Read what signs from PEM files. Raises UsageError for what can't, or must not now, sign."""
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except TypeError as error:
        raise UsageError(
            key, "is encrypted", "a key without a passphrase", f"--key <(openssl pkey -in {key})"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(key, "no private key that can be read", "a PEM file") from error
    if not isinstance(private, EllipticCurvePrivateKey) or type(private.curve) not in _HASHES:
        raise UsageError(key, "a key of another kind", _CURVES)
    if certificate is None:
        if chain:
            raise UsageError("--chain", "without --certificate", "both, or neither")
        return Signer(private)
    certificates = tuple(c for path in (certificate, *chain) for c in _certificates(path))
    if certificates[0].public_key() != private.public_key():
        raise UsageError(certificate, "is for another key", f"the certificate of {key}")
    if problem := _problem_of(certificates[0]):
        raise UsageError(certificate, problem, "a certificate that may sign now")
    return Signer(private, certificates)


def read_trusted(path: Path) -> Trusted:
    """Read a public key or certificate authorities, PEM. Raises UsageError for anything else."""
    content = path.read_bytes()
    if b"BEGIN CERTIFICATE" in content:
        return Trusted(path, authorities=tuple(_certificates(path)))
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        got, expected = "neither public key nor certificate", "one of them in PEM"
        raise UsageError(path, got, expected, "openssl pkey -in KEY -pubout") from error
    if not _is_supported(key):
        raise UsageError(path, "a key of another kind", _CURVES)
    return Trusted(path, key)


def signer_of(signature: Signature) -> str:
    """Say who made a signature, as it states itself."""
    if not signature.certificates_der:
        return f"key {signature.key_sha256[:12]}" if signature.key_sha256 else "an unnamed key"
    certificate = _der_certificate(signature.path, signature.certificates_der[0])
    return f"{_name(certificate)}, certificate until {certificate.not_valid_after_utc:%Y-%m-%d}"


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        got = "no certificate that can be read"
        raise UsageError(path, got, "a PEM file with BEGIN CERTIFICATE") from error


def _der_certificate(signature: Path, content: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(content)
        _ = certificate.subject, certificate.extensions  # which are read no earlier
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        got = "holds a certificate that can't be read"
        raise BundleError(signature, got, way_out="sign it with irv2 sign") from error
    return certificate


def _problem_of(certificate: x509.Certificate) -> str:
    """Why the certificate must not sign, or must not any more."""
    if _now() > certificate.not_valid_after_utc:
        return f"its certificate expired at {certificate.not_valid_after_utc.isoformat()}"
    if _now() < certificate.not_valid_before_utc:
        begin = certificate.not_valid_before_utc.isoformat()
        return f"its certificate is not valid before {begin}"
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    usage = _extension(certificate, x509.KeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.CODE_SIGNING in purposes:
        return ""
    # RFC 5280, 4.2.1.12; else every web server of the same authority could sign bundles.
    if purposes is not None and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in purposes:
        return "its certificate is for other purposes than signing code, such as TLS"
    if usage is None or not usage.digital_signature:
        return "its certificate allows neither digital signatures nor code signing"
    return ""


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    found = (extension.value for extension in certificate.extensions)
    return next((value for value in found if isinstance(value, kind)), None)


def _is_supported(key: object) -> TypeGuard[EllipticCurvePublicKey]:
    return isinstance(key, EllipticCurvePublicKey) and type(key.curve) in _HASHES


def _ecdsa(curve: EllipticCurve) -> ECDSA:
    return ECDSA(_HASHES[type(curve)])


def _fingerprint(key: EllipticCurvePublicKey) -> str:
    """The specification's hint: the SHA-256 of the key's PEM text."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a name"


def _now() -> datetime:
    return datetime.now(UTC)
