"""HOST:PORT."""

import errno
import os
import socket

import pytest

from irv2.errors import UsageError
from irv2.serve.access.address import Address


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8500", "127.0.0.1", 8500, True),
        ("localhost:0", "localhost", 0, True),
        ("[::1]:8500", "::1", 8500, True),
        ("0.0.0.0:8500", "0.0.0.0", 8500, False),
        ("[::]:8500", "::", 8500, False),
        ("example.org:80", "example.org", 80, False),
    ],
)
def test_an_address_is_read_and_written_back(text, host, port, loopback):
    address = Address.parse(text, "--listen")
    assert (address.host, address.port, address.is_loopback) == (host, port, loopback)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8500",
        ":8500",
        "host:",
        "host:http",
        "host:65536",
        "a..b:1",
        "x" * 64 + ":1",
        "host:\u0665",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="--listen"):
        Address.parse(text, "--listen")


def test_a_used_port_is_called_so():
    with socket.create_server(("127.0.0.1", 0)) as used:
        address = Address("127.0.0.1", used.getsockname()[1])
        assert os.strerror(errno.EADDRINUSE).lower() in str(address.why_not())
