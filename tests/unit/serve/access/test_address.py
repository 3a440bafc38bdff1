"""HOST:PORT and unix:PATH, and where a server then listens."""

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from serving_site import has_ipv6

from irv2.errors import Irv2Error, UsageError
from irv2.serve.access.address import Address, parse_listen, reserve
from irv2.serve.access.connection_limits import ConnectionLimits, channel_options


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
        "::1:8500",
        "::1]:8500",
        "http://host:8500",
        "unix-abstract:irv2",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="--listen"):
        Address.parse(text, "--listen")


def test_a_used_port_is_called_so():
    with socket.create_server(("127.0.0.1", 0)) as used:
        address = Address("127.0.0.1", used.getsockname()[1])
        with pytest.raises(Irv2Error, match=os.strerror(errno.EADDRINUSE).lower()):
            address.listen()


def test_an_unknown_host_is_called_so():
    with pytest.raises(UsageError, match=r"^no-such-host.invalid:1: unknown host \(.+\)"):
        Address("no-such-host.invalid", 1).listen()


def test_an_address_of_another_machine_is_called_so():
    with pytest.raises(Irv2Error, match=os.strerror(errno.EADDRNOTAVAIL).lower()):
        Address("192.0.2.1", 0).listen()


def families_that_answer(port: int) -> set[str]:
    found = set()
    for host in ("127.0.0.1", "::1"):
        with suppress(ConnectionRefusedError), socket.create_connection((host, port), 5):
            found.add(host)
    return found


REACHED = [
    ("127.0.0.1", {"127.0.0.1"}),
    ("::1", {"::1"}),
    ("0.0.0.0", {"127.0.0.1"}),
    ("::", {"127.0.0.1", "::1"}),
]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize(("host", "reached"), REACHED)
def test_both_ports_listen_where_they_are_told_to_and_nowhere_else(host, reached):
    listeners = Address(host, 0).listen()
    assert families_that_answer(listeners[0].getsockname()[1]) == reached
    for listener in listeners:
        listener.close()

    server = grpc.server(ThreadPoolExecutor(1), options=channel_options(1, ConnectionLimits()))
    with Address(host, 0).ready_for_grpc() as names:
        (port,) = map(server.add_insecure_port, names)
    server.start()
    assert families_that_answer(port) == reached
    server.stop(0)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_all_of_ipv4_beside_another_server_on_all_of_ipv6():
    with socket.create_server(("::", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with Address("0.0.0.0", port).ready_for_grpc() as names:
            assert names == [f"0.0.0.0:{port}"]
        with pytest.raises(Irv2Error, match=os.strerror(errno.EADDRINUSE).lower()):
            Address("::", port).listen()


def test_a_port_taken_on_one_of_a_host_s_addresses_is_taken(monkeypatch):
    """gRPC would be content with the other one."""
    local = [(socket.AF_INET, 0, 0, "", (f"127.0.0.{i}", 0)) for i in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: local)
    listeners = Address("two", 0).listen()
    port = listeners[0].getsockname()[1]
    assert [listener.getsockname() for listener in listeners] == [
        ("127.0.0.1", port),
        ("127.0.0.2", port),
    ]
    listeners[0].close()
    with pytest.raises(Irv2Error, match=os.strerror(errno.EADDRINUSE).lower()):
        Address("two", port).listen()
    listeners[1].close()
    with Address("two", port).ready_for_grpc() as names:
        assert names == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]


def test_an_address_that_this_machine_lacks_is_passed_over(monkeypatch):
    """In a container without IPv6, localhost may be ::1 as well."""
    local = [(socket.AF_INET, 0, 0, "", (ip, 0)) for ip in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: local)
    (listener,) = Address("two", 0).listen()
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


def grpc_server_at(text: str) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(1))
    with parse_listen(text, "--listen").ready_for_grpc() as (name,):
        server.add_insecure_port(name)
    server.start()
    return server


def is_answered_at(path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def test_a_socket_is_listened_on_and_removed_at_the_end(tmp_path):
    path = tmp_path / "a b%20c.sock"
    assert str(parse_listen(f"unix:{path}", "--listen")) == f"unix:{path}"
    server = grpc_server_at(f"unix:{path}")
    assert is_answered_at(path)
    server.stop(0).wait()
    del server
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_a_server_that_died_is_replaced(tmp_path):
    path = tmp_path / "irv2.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    server = grpc_server_at(f"unix:{path}")
    assert is_answered_at(path)
    server.stop(0)


def test_the_socket_of_a_server_that_lives_is_left_to_it(tmp_path):
    path = tmp_path / "irv2.sock"
    server = grpc_server_at(f"unix:{path}")
    with pytest.raises(Irv2Error, match=f"^unix:{path}: address already in use; expected a place"):
        grpc_server_at(f"unix:{path}")
    assert is_answered_at(path)
    server.stop(0)


def test_a_file_that_is_no_socket_and_a_folder_that_is_missing_are_told(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(Irv2Error, match=os.strerror(errno.EADDRINUSE).lower()):
        grpc_server_at(f"unix:{path}")
    assert path.read_text() == "precious"
    with pytest.raises(Irv2Error, match=os.strerror(errno.ENOENT).lower()):
        grpc_server_at(f"unix:{tmp_path}/none/irv2.sock")


def test_a_reserved_port_is_taken_by_those_who_share_it_and_by_no_other_server():
    with Address("127.0.0.1", 0).ready_for_grpc() as names:
        (name,) = names
    port = int(name.rpartition(":")[2])
    (held,) = reserve([name])
    with held:
        with pytest.raises(Irv2Error, match=r"expected a free port"):
            Address("127.0.0.1", port).listen()
        with socket.socket() as sharing:
            sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sharing.bind(("127.0.0.1", port))
            sharing.listen()
            with socket.create_connection(("127.0.0.1", port)) as client:
                accepted, peer = sharing.accept()
                accepted.close()
                assert peer == client.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(Irv2Error, match="expected a free port"):
            reserve([used])
