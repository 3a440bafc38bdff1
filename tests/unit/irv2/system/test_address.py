"""Addresses, as servers and clients read them."""

import pytest

from irv2.errors import UsageError
from irv2.system.address import grpc_name_of_socket, host_and_port, socket_path, way_out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8500", ("127.0.0.1", 8500)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
    ],
)
def test_an_address_falls_into_host_and_port(text, expected):
    assert host_and_port(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8500",
        "host:",
        "host:http",
        "host:65536",
        "host:\u0665",
        "[::1]",
        ":1",
        "[]:1",
        "::1",
        "::1:1",
        "[::1]]:1",
        "h]:1",
        "http://h:1",
    ],
)
def test_what_has_no_port_is_no_address(text):
    assert host_and_port(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h:1", "write h:1, without http://"),
        ("HTTPS://[::1]:8500/", "write [::1]:8500, without HTTPS://"),
        ("dns:///h:1", "write h:1, without dns://"),
        ("::1:8500", "write an IPv6 address in brackets, as in [::1]:8500"),
        ("host", ""),
    ],
)
def test_what_was_meant_is_told(text, expected):
    assert way_out(text) == expected


def test_the_path_of_a_socket_is_read_and_named_for_grpc():
    assert socket_path("unix:/run/a b%20.sock", "--listen") == "/run/a b%20.sock"
    assert grpc_name_of_socket("/run/a b%20.sock") == "unix:/run/a%20b%2520.sock"
    assert socket_path(f"unix:{'x' * 107}", "--listen") == "x" * 107


@pytest.mark.parametrize("path", ["", "x" * 108, "\u00e4" * 54, "a\0b"])
def test_a_path_that_no_socket_can_have_is_wrong_usage(path):
    with pytest.raises(UsageError, match=r"^--listen: .*; expected unix:PATH, a path of 1 to 107"):
        socket_path(f"unix:{path}", "--listen")
