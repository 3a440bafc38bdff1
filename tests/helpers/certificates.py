"""Certificates for tests, made anew each time: an authority, a server's and a client's."""

from dataclasses import dataclass
from pathlib import Path

import trustme


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
