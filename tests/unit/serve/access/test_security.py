"""Who may ask, and who can listen: TLS, client certificates and tokens, over real sockets."""

import asyncio
import re
import ssl
import urllib.request
from dataclasses import replace

import grpc
import numpy as np
import pytest
import trustme
from certificates import issue
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from fuzzing import mutate, printable
from grpc_health.v1 import health_pb2
from serving_site import OPTIONS, Site, jpeg, request, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client, Tls
from irv2.errors import NotServing, RequestError, UsageError
from irv2.serve.access.address import Address
from irv2.serve.access.tls import Tls as ServerTls
from irv2.serve.access.tls import TlsFiles, tls_files
from irv2.serve.access.tokens import read_tokens
from irv2.v1.classifier_pb2 import ClassifyStreamRequest

TOKEN = "correct horse battery staple".replace(" ", "-")
OTHER = "another-token-of-some-length"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("security") / "tiny.bundle"))


def ask(site: Site, timeout_s: float = 10, **how):
    """In a thread, since the server needs the event loop."""

    def classify():
        with Client(site.server.ready_line.split()[1], **how) as client:
            return client.classify([jpeg(0)], timeout_s=timeout_s)[0].scores

    return asyncio.to_thread(classify)


async def assert_not_served(site: Site, reason: str = "", **how) -> None:
    with pytest.raises(NotServing, match=rf"no server answers \({reason}"):
        await ask(site, timeout_s=0.3, **how)


def files_of(issued, client_ca=None) -> TlsFiles:
    return TlsFiles(certificate=issued.certificate, key=issued.key, client_ca=client_ca)


def test_only_those_who_trust_the_certificate_are_answered(bundle, tmp_path):
    issued, stranger = issue(tmp_path / "server"), issue(tmp_path / "stranger")

    async def scenario(site):
        assert await ask(site, tls=Tls(ca=issued.ca))
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
        assert await ask(site, tls=known)
        await assert_not_served(site, tls=Tls(ca=issued.ca))
        await assert_not_served(site, tls=unknown)

    scenario_with(bundle, scenario, tls=files_of(issued, client.ca))


def test_a_renewed_certificate_is_taken_without_a_restart_on_both_ports(bundle, tmp_path):
    issued = issue(tmp_path)
    old_ca = issued.ca.rename(tmp_path / "old.pem")

    async def scenario(site):
        await asyncio.to_thread(ready, site, old_ca)
        assert await ask(site, tls=Tls(ca=old_ca))
        issued.key.write_text("half of a renewal")
        assert await ask(site, tls=Tls(ca=old_ca)), "the old pair serves until the new one is whole"
        issue(tmp_path)
        assert await ask(site, tls=Tls(ca=issued.ca))
        await asyncio.to_thread(ready, site, issued.ca)
        await assert_not_served(site, tls=Tls(ca=old_ca))

    def ready(site, ca):
        url = f"https://{site.server.description['http']}/readyz"
        context = ssl.create_default_context(cafile=ca)
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            assert response.status == 200

    scenario_with(bundle, scenario, tls=files_of(issued), http=Address("127.0.0.1", 0))


def test_only_a_token_of_the_file_opens_the_door(bundle, tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(f"# who may ask\nalice {TOKEN}\n\nbob {OTHER}\n")

    async def scenario(site):
        assert await ask(site, token=TOKEN)
        assert await ask(site, token=OTHER)
        for wrong in (None, "", TOKEN[:-1], f"alice:{TOKEN}"):
            with pytest.raises(RequestError, match="takes no request without a valid token"):
                await ask(site, token=wrong)
        for call in (site.stub.Classify(request(0)), site.stub.ClassifyStream()):
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        health = await site.health.Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        text = site.server.metrics_text().decode()
        assert 'irv2_calls_total{caller="alice"} 2.0' in text  # GetModel and Classify
        assert 'irv2_calls_total{caller="bob"} 2.0' in text
        assert "irv2_unauthenticated_calls_total 6.0" in text
        assert TOKEN not in text + caplog.text

    caplog.set_level("INFO")
    scenario_with(bundle, scenario, token_file=path, log_requests=True)
    assert "caller=alice" in caplog.text


def test_no_damaged_token_opens_the_door(bundle, tmp_path, caplog):
    path, rng = tmp_path / "tokens", np.random.default_rng(0)
    path.write_text(f"alice {TOKEN}\n")
    values = [printable(mutate(f"Bearer {TOKEN}".encode(), rng)) for _ in range(300)]
    damaged = [value for value in values if not re.fullmatch(f"(?i:bearer) +{TOKEN} *", value)]
    assert len(damaged) > 250

    async def scenario(site):
        for value in damaged:
            call = site.stub.Classify(request(0), metadata=(("authorization", value),))
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED, value
        assert await ask(site, token=TOKEN)

    scenario_with(bundle, scenario, token_file=path)
    assert not caplog.records


def test_tokens_are_taken_in_and_withdrawn_without_a_restart(bundle, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")

    async def scenario(site):
        path.write_text("alice")  # half written
        assert await ask(site, token=TOKEN)
        path.write_text(f"bob {OTHER}\n")
        assert await ask(site, token=OTHER)
        with pytest.raises(RequestError, match="without a valid token"):
            await ask(site, token=TOKEN)

    scenario_with(bundle, scenario, token_file=path)


def test_a_stream_with_a_token_is_answered(bundle, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n")

    async def scenario(site):
        call = site.stub.ClassifyStream(metadata=(("authorization", f"Bearer {TOKEN}"),))
        await call.write(ClassifyStreamRequest(request=request(0, id="0")))
        assert (await call.read()).response.results[0].scores
        call.cancel()

    scenario_with(bundle, scenario, token_file=path)


@pytest.mark.parametrize(
    "text", ["", "# nobody\n", "alice\n", "alice short\n", f"a {TOKEN}\na {OTHER}\n"]
)
def test_a_token_file_that_makes_no_sense_is_wrong_usage(text, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_tokens(path)
    with pytest.raises(UsageError):
        read_tokens(tmp_path / "none")


@pytest.mark.parametrize("token", [f"{TOKEN}\u00e4", f"{TOKEN} {TOKEN}", f"{TOKEN}\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_on_either_side(token, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\nbob {token}\n")
    with pytest.raises(UsageError, match="tokens:2: a token of 'bob' that no header can carry"):
        read_tokens(path)
    with pytest.raises(UsageError, match="one word of printable ASCII") as refused:
        Client("localhost:1", token=token)
    assert TOKEN not in str(refused.value)


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


@pytest.mark.parametrize("port", ["listen", "http"])
def test_other_machines_are_served_encrypted_or_only_when_asked_for(port, tmp_path):
    everywhere = {port: Address("0.0.0.0", 8500)}
    with pytest.raises(UsageError, match="--tls-cert"):
        replace(OPTIONS, **everywhere)
    replace(OPTIONS, **everywhere, insecure=True)
    replace(OPTIONS, **everywhere, tls=TlsFiles(certificate=tmp_path, key=tmp_path))
