"""Addresses and TLS files of a client, checked before anything is sent."""

import pytest
from certificates import issue, self_sign
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from irv2.client.channel import Tls, open_channel
from irv2.errors import NotServing, UsageError


@pytest.mark.parametrize("port", ["1", "8500", "65535"])
def test_any_port_of_tcp_is_taken(port):
    open_channel([f"127.0.0.1:{port}"], None).close()
    open_channel([f"127.0.0.1:{port}", f"[::1]:{port}"], None).close()


@pytest.mark.parametrize("port", ["", "0", "65536", "108581", "-1", "http", "\u0665", "1" * 5000])
def test_any_other_port_is_wrong_usage(port):
    for addresses in ([f"127.0.0.1:{port}"], ["127.0.0.1:8500", f"127.0.0.1:{port}"]):
        with pytest.raises(UsageError, match="expected HOST:PORT, the port from 1 to 65535"):
            open_channel(addresses, None)


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "dns"])
def test_a_url_is_wrong_usage_and_the_address_in_it_is_told(scheme):
    for addresses in ([f"{scheme}://host:1/"], ["127.0.0.1:8500", f"{scheme}://host:1"]):
        with pytest.raises(UsageError, match=f"; write host:1, without {scheme}://$"):
            open_channel(addresses, None)


@pytest.mark.parametrize("address", ["::1", "::1:8500", "[::1]", "::1]:8500", ":8500"])
def test_ipv6_without_its_brackets_and_no_host_are_wrong_usage(address):
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        open_channel([address], None)


def test_a_socket_among_several_servers_is_wrong_usage():
    with pytest.raises(UsageError, match="a socket in a list; expected one unix:PATH alone"):
        open_channel(["unix:/run/irv2.sock", "127.0.0.1:8500"], None)


@pytest.mark.parametrize("path", ["", "x" * 108])
def test_a_path_that_no_socket_can_have_is_wrong_usage(path):
    with pytest.raises(UsageError, match=r"^address: .*; expected unix:PATH"):
        open_channel([f"unix:{path}"], None)


def test_no_address_is_wrong_usage():
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        open_channel([], None)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "no-such-host.invalid"])
def test_an_unknown_host_of_a_list_is_named_and_left_out(host, caplog):
    open_channel(["127.0.0.1:8500", f"{host}:8500"], None).close()
    assert f"{host}:8500: unknown host (" in caplog.text
    with pytest.raises(NotServing, match=rf"^{host}:8500: unknown host \(.+\)"):
        open_channel([f"{host}:8500", f"{host}:8501"], None)


@pytest.mark.parametrize("content", ["", "junk\n", "KEY"])
def test_a_ca_file_without_a_certificate_is_named_at_the_start(tmp_path, content):
    issued = issue(tmp_path)
    issued.ca.write_text(content.replace("KEY", issued.key.read_text()))
    with pytest.raises(UsageError, match=rf"^{issued.ca}: no certificates \(.+\); expected PEM"):
        open_channel(["127.0.0.1:8500"], Tls(ca=issued.ca))


@pytest.mark.parametrize("damage", ["junk", "another key", "encrypted"])
def test_a_certificate_without_its_key_is_named_at_the_start(tmp_path, damage):
    issued, other = issue(tmp_path / "ours"), issue(tmp_path / "other")
    key = load_pem_private_key(issued.key.read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    issued.key.write_bytes(
        {
            "junk": b"junk",
            "another key": other.key.read_bytes(),
            "encrypted": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret),
        }[damage]
    )
    with pytest.raises(UsageError, match=rf"^{issued.certificate}: no certificate with its key"):
        open_channel(["127.0.0.1:8500"], Tls(certificate=issued.certificate, key=issued.key))


def test_a_client_key_that_no_server_understands_is_told(tmp_path):
    issued = self_sign(tmp_path, "Ed25519")
    with pytest.raises(UsageError, match=r"an Ed25519 key, .*; expected an RSA key"):
        open_channel(["127.0.0.1:8500"], Tls(certificate=issued.certificate, key=issued.key))
