"""Who is answered by a server that encrypts."""

import asyncio
import ssl
import urllib.error
import urllib.request

import pytest
import trustme
from certificates import issue, self_sign
from serving_site import Site, jpeg, scenario_with

from irv2.client import Tls
from irv2.errors import NotServing
from irv2.serve.access.address import Address
from irv2.serve.access.tls import TlsFiles


async def assert_not_served(site: Site, reason: str = "", **how) -> None:
    with pytest.raises(NotServing, match=rf"no server answers \({reason}"):
        await site.ask(timeout_s=1, **how)  # at least one handshake, on a busy machine too


def files_of(issued, client_ca=None) -> TlsFiles:
    return TlsFiles(certificate=issued.certificate, key=issued.key, client_ca=client_ca)


async def ready(site: Site, ca) -> None:
    """Ask the HTTP port, whose certificate `ca` must have signed."""
    url = f"https://{site.server.description['http']}/readyz"
    context = ssl.create_default_context(cafile=ca)

    def ask() -> None:
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            assert response.status == 200

    await asyncio.to_thread(ask)


async def over_http(site: Site, ca, path: str, client=None) -> int:
    """The status that the HTTP port answers with; to /v1 a picture is posted."""
    url = f"https://{site.server.description['http']}{path}"
    context = ssl.create_default_context(cafile=ca)
    if client:
        context.load_cert_chain(client.certificate, client.key)
    body = jpeg(0) if path.startswith("/v1") else None

    def ask() -> int:
        try:
            with urllib.request.urlopen(url, body, timeout=5, context=context) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    return await asyncio.to_thread(ask)


def test_only_those_who_trust_the_certificate_are_answered(bundle, tmp_path):
    issued, stranger = issue(tmp_path / "server"), issue(tmp_path / "stranger")

    async def scenario(site):
        assert await site.ask(tls=Tls(ca=issued.ca))
        await assert_not_served(site, r"Socket closed\).* if it speaks TLS, pass --tls-ca")
        await assert_not_served(site, "CERTIFICATE_VERIFY_FAILED", tls=Tls(ca=stranger.ca))

    scenario_with(bundle, scenario, tls=files_of(issued))


def test_a_client_that_encrypts_is_told_that_the_server_does_not(bundle, tmp_path):
    async def scenario(site):
        await assert_not_served(site, "WRONG_VERSION_NUMBER", tls=Tls(ca=issue(tmp_path).ca))

    scenario_with(bundle, scenario)


def test_with_a_client_ca_a_client_needs_a_certificate_of_it(bundle, tmp_path):
    issued, stranger = issue(tmp_path / "server"), issue(tmp_path / "stranger")
    clients = trustme.CA()
    client = issue(tmp_path / "client", "client", clients)

    async def scenario(site):
        known = Tls(ca=issued.ca, certificate=client.certificate, key=client.key)
        unknown = Tls(ca=issued.ca, certificate=stranger.certificate, key=stranger.key)
        assert await site.ask(tls=known)
        await assert_not_served(site, tls=Tls(ca=issued.ca))
        await assert_not_served(site, tls=unknown)
        assert await over_http(site, issued.ca, "/readyz") == 200
        for path in ("/v2/models/irv2", "/v1/classify"):
            assert await over_http(site, issued.ca, path) == 401
            assert await over_http(site, issued.ca, path, client) == 200
        # It hears why, or of the end alone, as it was reading or writing at that moment.
        with pytest.raises(OSError, match=r"(?i)unknown ca|EOF occurred|reset|closed|broken pipe"):
            await over_http(site, issued.ca, "/readyz", stranger)

    scenario_with(bundle, scenario, tls=files_of(issued, client.ca), http=Address("127.0.0.1", 0))


def test_a_renewed_certificate_is_taken_without_a_restart_on_both_ports(bundle, tmp_path):
    issued = issue(tmp_path)
    old_ca = issued.ca.rename(tmp_path / "old.pem")

    async def scenario(site):
        await ready(site, old_ca)
        assert await site.ask(tls=Tls(ca=old_ca))
        issued.key.write_text("half of a renewal")
        assert await site.ask(tls=Tls(ca=old_ca)), "the old pair serves until the new one is whole"
        issue(tmp_path)
        assert await site.ask(tls=Tls(ca=issued.ca))
        await ready(site, issued.ca)
        await assert_not_served(site, tls=Tls(ca=old_ca))

    scenario_with(bundle, scenario, tls=files_of(issued), http=Address("127.0.0.1", 0))


@pytest.mark.parametrize("kind", ["Ed25519", "ECDSA on secp256k1", "RSA, 1024 bits"])
def test_a_renewal_to_a_key_that_grpc_can_not_serve_keeps_the_old_pair(
    kind, bundle, tmp_path, caplog
):
    issued = self_sign(tmp_path, "ECDSA on P-256")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(issued.ca.read_bytes())

    async def scenario(site):
        self_sign(tmp_path, kind)
        assert await site.ask(tls=Tls(ca=ca))
        await ready(site, ca)

    scenario_with(bundle, scenario, tls=files_of(issued), http=Address("127.0.0.1", 0))
    assert f"file_not_reloaded error={issued.certificate}: an" in caplog.text
    assert "expected an RSA key of 2048 bits or more" in caplog.text


def test_a_failure_of_tls_is_told_where_the_host_has_another_address_too(bundle, tmp_path):
    """localhost is ::1 as well, where nobody listens."""
    issued, stranger = issue(tmp_path / "server"), issue(tmp_path / "stranger")

    async def scenario(site):
        port = site.server.ready_line.split()[1].rpartition(":")[2]
        for tls, reason in [
            (None, "Socket closed"),
            (Tls(ca=stranger.ca), "CERTIFICATE_VERIFY_FAILED"),
            (Tls(ca=issued.ca, server_name="other"), "Hostname Verification Check failed"),
        ]:
            await assert_not_served(site, reason, address=f"localhost:{port}", tls=tls)

    scenario_with(bundle, scenario, tls=files_of(issued))
