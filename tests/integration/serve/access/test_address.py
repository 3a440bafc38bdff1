"""A server and its clients over a socket in the file system."""

import signal
import stat

import pytest
from certificates import issue
from serving_process import serving
from serving_site import jpeg, scenario_with

from irv2.client import Client, Tls
from irv2.errors import NotServing
from irv2.serve.access.address import Address, UnixSocket
from irv2.serve.access.tls import TlsFiles


def test_a_client_is_answered_through_a_socket_that_goes_with_the_server(bundle, tmp_path):
    path = tmp_path / "irv2.sock"

    async def scenario(site):
        assert site.server.ready_line.startswith(f"ready unix:{path} model=")
        assert site.server.description["listen"] == f"unix:{path}"
        assert site.server.description["http"].startswith("127.0.0.1:")
        assert await site.ask()
        assert stat.S_ISSOCK(path.stat().st_mode)

    scenario_with(bundle, scenario, listen=UnixSocket(path), http=Address("127.0.0.1", 0))
    assert not path.exists()


def test_a_socket_may_be_encrypted(bundle, tmp_path):
    issued = issue(tmp_path)

    async def scenario(site):
        assert await site.ask(tls=Tls(ca=issued.ca, server_name="localhost"))
        with pytest.raises(NotServing, match=r"Socket closed.*, if it speaks TLS, pass --tls-ca"):
            await site.ask(timeout_s=0.3)

    files = TlsFiles(certificate=issued.certificate, key=issued.key)
    scenario_with(bundle, scenario, listen=UnixSocket(tmp_path / "irv2.sock"), tls=files)


def test_a_socket_without_a_server_is_named_with_the_way_to_start_one(tmp_path):
    address = f"unix:{tmp_path}/irv2.sock"
    with Client(address) as client, pytest.raises(NotServing) as failed:
        client.classify([jpeg(0)], timeout_s=0.3)
    assert str(failed.value).startswith(f"{address}: no server answers (No such file or directory)")
    assert f"start one with `irv2-serve BUNDLE --listen {address}`" in str(failed.value)


def test_a_server_that_was_killed_leaves_its_socket_to_the_next(bundle, tmp_path):
    address = f"unix:{tmp_path}/irv2.sock"
    with serving(bundle.path, "--listen", address) as first:
        first.stop(signal.SIGKILL)
    assert (tmp_path / "irv2.sock").is_socket()
    with serving(bundle.path, "--listen", address, "--grace-s", "0") as process:
        assert process.address == address
        with Client(process.address) as client:
            assert client.classify([jpeg(0)])[0].scores
        assert process.stop(signal.SIGTERM)[0] == 0
    assert not (tmp_path / "irv2.sock").exists()
