"""Addresses, as servers and clients read them."""

import pytest

from irv2.system.address import host_and_port, way_out


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
