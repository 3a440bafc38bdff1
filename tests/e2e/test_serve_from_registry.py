"""A server takes its bundle from a registry over TLS, and starts again while that is away."""

import subprocess
import sys

import pytest
import trustme
from registry import AFAR, log_in, needs_registry, password_required, registry, write_certificate
from serving_process import LOOPBACK, serving
from serving_site import jpeg
from signing import key_pair
from tiny_bundle import write_tiny_bundle

from irv2.client import Client
from irv2.delivery.image import pull_to_cache, push
from irv2.delivery.reference import Reference
from irv2.system.cache import cache_folder
from irv2.trust.keys import read_signer
from irv2.trust.sign import sign

pytestmark = needs_registry


@pytest.fixture
def over_tls(tmp_path, monkeypatch):
    """A registry that asks for a password, of an authority that is trusted and logged in to."""
    authority, folder = trustme.CA(), tmp_path / "registry"
    folder.mkdir()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    certificate = write_certificate(folder / "server.pem", authority)
    with registry(folder, password_required(folder), certificate, AFAR) as running:
        log_in(tmp_path, running.host)
        yield running


def refusal(*arguments: str) -> str:
    """The one line of a server that does not start."""
    command = [sys.executable, "-m", "irv2", "serve", *arguments, "--listen", LOOPBACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.count("\n") == 1, done.stderr
    return f"{done.returncode} {done.stderr}"


def test_a_signed_bundle_is_served_from_a_registry_and_then_from_the_cache(
    over_tls, tmp_path, monkeypatch
):
    bundle, keys = write_tiny_bundle(tmp_path / "tiny.bundle"), key_pair(tmp_path)
    sign(bundle, read_signer(keys.private))
    options = ("--require-signature", str(keys.public))
    tagged = f"oci://{over_tls.host}/tiny:v1"
    place = push(bundle, Reference.parse(tagged))
    with monkeypatch.context() as stranger:
        stranger.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        assert "certificate is refused" in (said := refusal(str(place)))
        assert said.startswith("1 ")
    with serving(str(place), *options) as process, Client(process.address) as client:
        assert client.classify([jpeg(0)])[0].scores
    (cached,) = (cache_folder() / "bundles").glob(f"{place.digest.replace(':', '-')}")
    (cached / "model.onnx").write_bytes(b"damaged")
    assert pull_to_cache(place) == cached
    over_tls.process.kill()
    with serving(str(place), *options) as process, Client(process.address) as client:
        assert client.classify([jpeg(0)])[0].scores
    assert "names a tag; expected ...@sha256:DIGEST" in (said := refusal(tagged))
    assert said.startswith("2 ")
