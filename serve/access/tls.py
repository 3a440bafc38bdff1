"""TLS, and mutual TLS, for both ports, with certificates that may be renewed while it runs."""

import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import grpc

from irv2.errors import UsageError
from irv2.serve.access.watched_files import Watched

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the server's certificate chain and key; who signs the clients' certificates."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


def tls_files(
    certificate: Path | None, key: Path | None, client_ca: Path | None
) -> TlsFiles | None:
    """The options --tls-cert, --tls-key and --tls-client-ca; None without any."""
    if certificate and key:
        return TlsFiles(certificate=certificate, key=key, client_ca=client_ca)
    if certificate or key or client_ca:
        raise UsageError("TLS", "half of it", "--tls-cert with --tls-key")
    return None


class _Loaded(NamedTuple):
    """The same certificate for gRPC and for HTTP."""

    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext


class Tls:
    """The credentials of both ports, for the files as they are at each handshake."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises UsageError where the files do not make a certificate."""
        self._files = files
        paths = [files.certificate, files.key, *filter(None, [files.client_ca])]
        self._watched = Watched(paths, self._load)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For one address of the gRPC port; with a client CA, clients need a certificate."""
        given = self._watched.current().configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Called by gRPC at each handshake; None keeps what this address has."""
            nonlocal given
            current = self._watched.current().configuration
            if current is given:
                return None
            given = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            given,
            fetch,  # type: ignore[arg-type] # the stubs forget that None keeps the old
            require_client_authentication=bool(self._files.client_ca),
        )

    def http_context(self) -> ssl.SSLContext:
        """For the HTTP port. With a client CA, clients may show a certificate: probes have none."""

        def use_current(
            connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext
        ) -> None:
            connection.context = self._watched.current().context

        context = self._watched.current().context
        context.sni_callback = use_current  # once per handshake, whether or not a name is sent
        return context

    def _load(self) -> _Loaded:
        from irv2.system.certificate import check_key, not_valid_at  # what it costs, only TLS pays

        certificate, key = self._files.certificate, self._files.key

        def no_passphrase() -> str:
            raise UsageError(key, "encrypted", "a key without passphrase")

        client_ca = _client_ca(self._files.client_ca) if self._files.client_ca else None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            # gRPC would notice files that do not fit it, or each other, only at a handshake.
            check_key(certificate)
            context.load_cert_chain(certificate, key, no_passphrase)
            if self._files.client_ca:
                context.verify_mode = ssl.CERT_OPTIONAL
                context.load_verify_locations(self._files.client_ca)
            configuration = grpc.ssl_server_certificate_configuration(
                [(key.read_bytes(), certificate.read_bytes())], root_certificates=client_ca
            )
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(
                certificate,
                f"no certificate with its key ({error.strerror or error})",
                "PEM files that belong together",
            ) from error
        # As other servers do, it starts all the same: some clients look at the key alone.
        if fault := not_valid_at(certificate, datetime.now(UTC)):
            logger.warning("certificate_not_valid file=%s %s", certificate, fault)
        return _Loaded(configuration, context)


def _client_ca(path: Path) -> bytes:
    try:
        ssl.create_default_context(cafile=path)
        return path.read_bytes()
    except OSError as error:
        got = f"no certificate of an authority ({error.strerror or error})"
        raise UsageError(path, got, "a PEM file") from error
