"""Certificates for tests, made anew each time: an authority, a server's and a client's."""

import ipaddress
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

KEYS = {
    "RSA, 1024 bits": lambda: rsa.generate_private_key(65537, 1024),
    "RSA, 2048 bits": lambda: rsa.generate_private_key(65537, 2048),
    "RSA, 4096 bits": lambda: rsa.generate_private_key(65537, 4096),
    "ECDSA on P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "ECDSA on P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ECDSA on P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ECDSA on P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ECDSA on secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "RSA-PSS, 2048 bits": None,  # openssl makes it, cryptography can't
}


@dataclass(frozen=True, slots=True)
class Issued:
    """PEM files of one certificate and of the authority that signed it."""

    ca: Path
    certificate: Path
    key: Path

    @property
    def server_options(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.certificate), "--tls-key", str(self.key))


def issue(folder: Path, name: str = "server", authority: trustme.CA | None = None) -> Issued:
    """Write a certificate for 127.0.0.1 and localhost; over one that is there already, too."""
    authority = authority or trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost", common_name=name)
    folder.mkdir(exist_ok=True)
    issued = Issued(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")
    authority.cert_pem.write_to_path(issued.ca)
    certificate.cert_chain_pems[0].write_to_path(issued.certificate)
    certificate.private_key_pem.write_to_path(issued.key)
    return issued


def self_sign(folder: Path, key: str, days: tuple[float, float] = (-1, 1)) -> Issued:
    """Write a certificate of a kind of KEYS that is its own authority, valid between two days."""
    folder.mkdir(exist_ok=True)
    issued = Issued(folder / "server.pem", folder / "server.pem", folder / "server.key")
    if KEYS[key] is None:
        command = "openssl req -x509 -newkey rsa-pss -nodes -subj /CN=localhost -days 1 -addext"
        files = ["-keyout", str(issued.key), "-out", str(issued.certificate)]
        alternatives = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        subprocess.run([*command.split(), alternatives, *files], check=True, capture_output=True)
        return issued
    private, now = KEYS[key](), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days[0]))
        .not_valid_after(now + timedelta(days[1]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, None if key.startswith("Ed") else hashes.SHA256())
    )
    issued.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    issued.key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return issued
