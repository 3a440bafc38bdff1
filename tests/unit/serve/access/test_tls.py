"""TLS files that make no sense."""

import pytest
from certificates import issue
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from serving_site import scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client, Tls
from irv2.errors import UsageError
from irv2.serve.access.tls import Tls as ServerTls
from irv2.serve.access.tls import TlsFiles, tls_files


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("security") / "tiny.bundle"))


def files_of(issued, client_ca=None) -> TlsFiles:
    return TlsFiles(certificate=issued.certificate, key=issued.key, client_ca=client_ca)


def test_a_key_of_another_certificate_is_wrong_usage(bundle, tmp_path):
    issued, stranger = issue(tmp_path / "server"), issue(tmp_path / "stranger")
    mixed = TlsFiles(certificate=issued.certificate, key=stranger.key)
    with pytest.raises(UsageError, match="no certificate with its key"):
        scenario_with(bundle, None, tls=mixed)


def test_a_client_ca_that_is_none_is_named(tmp_path):
    issued, junk = issue(tmp_path), tmp_path / "junk.pem"
    junk.write_text("no certificate")
    with pytest.raises(UsageError, match=f"{junk}: no certificate of an authority"):
        ServerTls(files_of(issued, junk))


def test_an_encrypted_key_is_wrong_usage_and_nobody_is_asked_for_a_passphrase(tmp_path):
    issued = issue(tmp_path)
    key = load_pem_private_key(issued.key.read_bytes(), None)
    issued.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(UsageError, match=f"{issued.key}: encrypted; expected a key without"):
        ServerTls(files_of(issued))


def test_half_of_tls_is_wrong_usage(tmp_path):
    assert tls_files(None, None, None) is None
    with pytest.raises(UsageError):
        tls_files(tmp_path, None, None)
    with pytest.raises(UsageError):
        tls_files(None, None, tmp_path)
    with pytest.raises(UsageError):
        Tls(certificate=tmp_path)
    with pytest.raises(UsageError):
        Client("127.0.0.1:1", tls=Tls(ca=tmp_path / "none"))
