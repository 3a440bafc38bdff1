"""A server takes its bundle from a registry, by digest, and starts again while that is away."""

import subprocess
import sys

from registry import needs_registry, registry
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


def test_a_signed_bundle_is_served_from_a_registry_and_then_from_the_cache(tmp_path):
    bundle, keys = write_tiny_bundle(tmp_path / "tiny.bundle"), key_pair(tmp_path)
    sign(bundle, read_signer(keys.private))
    options = ("--require-signature", str(keys.public))
    folder = tmp_path / "registry"
    folder.mkdir()
    with registry(folder) as running:
        tagged = f"oci://{running.host}/tiny:v1"
        place = push(bundle, Reference.parse(tagged))
        with serving(str(place), *options) as process, Client(process.address) as client:
            assert client.classify([jpeg(0)])[0].scores
        (cached,) = (cache_folder() / "bundles").glob(f"{place.digest.replace(':', '-')}")
        (cached / "model.onnx").write_bytes(b"damaged")
        assert pull_to_cache(place) == cached
    with serving(str(place), *options) as process, Client(process.address) as client:
        assert client.classify([jpeg(0)])[0].scores

    command = [sys.executable, "-m", "irv2", "serve", tagged, "--listen", LOOPBACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "names a tag; expected ...@sha256:DIGEST" in done.stderr
