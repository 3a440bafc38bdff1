"""TLS files that make no sense, and the table of docs/serving.md that says which keys serve."""

import shutil
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from certificates import KEYS, issue, self_sign
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from project import ROOT
from serving_site import scenario_with

from irv2.client import Client, Tls
from irv2.errors import UsageError
from irv2.serve.access.tls import Tls as ServerTls
from irv2.serve.access.tls import TlsFiles, tls_files


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


def is_reached_by_grpc(port: int, issued) -> bool:
    credentials = grpc.ssl_channel_credentials(issued.ca.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary("/no/method")(b"", timeout=10)
        return failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def is_reached_by_openssl(port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        try:
            context.wrap_socket(connection).close()
        except ssl.SSLError:
            return False
    return True


def is_taken_by_us(issued) -> bool:
    try:
        ServerTls(files_of(issued))
    except UsageError:
        return False
    return True


def row(kind: str, folder) -> str:
    """What a gRPC server makes of a key, whatever we think of it."""
    issued = self_sign(folder, kind)
    server = grpc.server(ThreadPoolExecutor(1))
    pair = (issued.key.read_bytes(), issued.certificate.read_bytes())
    try:
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    except RuntimeError:
        answers = [False, False]
    else:
        server.start()
        answers = [is_reached_by_grpc(port, issued), is_reached_by_openssl(port)]
    finally:
        server.stop(0)
    answers.append(is_taken_by_us(issued))
    return " | ".join(["", kind, *("yes" if each else "no" for each in answers), ""]).strip()


@pytest.mark.parametrize("kind", KEYS)
def test_the_table_of_keys_is_what_grpc_does(kind, tmp_path):
    if KEYS[kind] is None and not shutil.which("openssl"):
        pytest.skip("needs the program openssl")
    assert row(kind, tmp_path) in (ROOT / "docs" / "serving.md").read_text().splitlines()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Ed25519", "an Ed25519 key, with which gRPC makes no connection"),
        ("RSA, 1024 bits", "an RSA key that is too short"),
    ],
)
def test_a_key_that_can_not_be_served_is_wrong_usage(kind, reason, tmp_path):
    issued = self_sign(tmp_path, kind)
    with pytest.raises(UsageError, match=f"^{issued.certificate}: {reason}; expected an RSA key"):
        ServerTls(files_of(issued))


@pytest.mark.parametrize(
    ("days", "fault"), [((-2, -1), "expired at"), ((1, 2), "not valid before"), ((-1, 1), None)]
)
def test_a_certificate_out_of_its_time_is_served_with_a_warning(days, fault, tmp_path, caplog):
    ServerTls(files_of(self_sign(tmp_path, "ECDSA on P-256", days)))
    assert [record.levelname for record in caplog.records] == (["WARNING"] if fault else [])
    assert f"file={tmp_path / 'server.pem'} {fault}" in caplog.text or not fault


def test_a_renewal_reaches_every_address_of_the_port(tmp_path):
    """gRPC asks for the certificate of each address by itself."""
    issued = issue(tmp_path)
    tls, server = ServerTls(files_of(issued)), grpc.server(ThreadPoolExecutor(1))
    ports = [server.add_secure_port("127.0.0.1:0", tls.grpc_credentials()) for _ in range(2)]
    server.start()
    issue(tmp_path)
    assert [is_reached_by_grpc(port, issued) for port in ports] == [True, True]
    server.stop(0)
