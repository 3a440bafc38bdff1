"""Keys and certificates that sign bundles, made anew for each run of the tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)


@dataclass(frozen=True)
class KeyPair:
    """PEM files of a private and its public key."""

    private: Path
    public: Path


@dataclass(frozen=True)
class Certified:
    """PEM files of a key, its certificate, the authority between, and the one to trust."""

    private: Path
    certificate: Path
    chain: Path
    root: Path

    @property
    def options(self) -> list[str]:
        files = ("--key", self.private, "--certificate", self.certificate, "--chain", self.chain)
        return [str(each) for each in files]


def key_pair(
    folder: Path, name: str = "key", curve: ec.EllipticCurve | None = None, password: bytes = b""
) -> KeyPair:
    """Write a new pair of keys, by default on P-256."""
    key, pair = (
        ec.generate_private_key(curve or ec.SECP256R1()),
        KeyPair(folder / f"{name}.pem", folder / f"{name}.pub.pem"),
    )
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    pair.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    pair.public.write_bytes(public)
    return pair


def certified(
    folder: Path,
    name: str = "signer",
    days: tuple[float, float] = (-1, 1),
    purposes: Sequence[x509.ObjectIdentifier] | None = (),
) -> Certified:
    """Write a signer's certificate, valid between two days, from an authority below a root.

    It may be used as trustme has it, for TLS and for signing, or for `purposes`; None states none.
    """
    root, now = trustme.CA(), datetime.now(UTC)
    between = root.create_child_ca()
    issued = between.issue_cert(
        f"{name}@example.com",
        common_name=name,
        not_before=now + timedelta(days[0]),
        not_after=now + timedelta(days[1]),
        key_type=trustme.KeyType.ECDSA,
    )
    files = (folder / f"{name}.{part}.pem" for part in ("key", "cert", "chain", "root"))
    made = Certified(*files)
    issued.private_key_pem.write_to_path(made.private)
    issued.cert_chain_pems[0].write_to_path(made.certificate)
    if purposes != ():
        limit(made.certificate, between, purposes)
    between.cert_pem.write_to_path(made.chain)
    root.cert_pem.write_to_path(made.root)
    return made


def limit(path: Path, issuer: trustme.CA, purposes: Sequence[x509.ObjectIdentifier] | None) -> None:
    """Issue a certificate again with other purposes."""
    old = x509.load_pem_x509_certificate(path.read_bytes())
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), old.serial_number,
        old.not_valid_before_utc, old.not_valid_after_utc,
        [each for each in old.extensions if not isinstance(each.value, x509.ExtendedKeyUsage)],
    )  # fmt: skip
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    key = load_pem_private_key(issuer.private_key_pem.bytes(), None)
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
