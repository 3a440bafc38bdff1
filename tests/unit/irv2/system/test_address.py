"""HOST:PORT, as servers and clients read it."""

import pytest

from irv2.system.address import host_and_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8500", ("127.0.0.1", 8500)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("dns:///host:1", ("dns:///host", 1)),
    ],
)
def test_an_address_falls_into_host_and_port(text, expected):
    assert host_and_port(text) == expected


@pytest.mark.parametrize(
    "text", ["", "8500", "host:", "host:http", "host:65536", "host:\u0665", "[::1]"]
)
def test_what_has_no_port_is_no_address(text):
    assert host_and_port(text) is None
