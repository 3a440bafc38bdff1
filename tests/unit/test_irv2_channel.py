"""Addresses and TLS files of a client, checked before anything is sent."""

import pytest

from irv2.channel import open_channel
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


def test_no_address_is_wrong_usage():
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        open_channel([], None)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "no-such-host.invalid"])
def test_an_unknown_host_of_a_list_is_named(host):
    with pytest.raises(NotServing, match=rf"^{host}:8500: unknown host \(.+\)"):
        open_channel(["127.0.0.1:8500", f"{host}:8500"], None)
