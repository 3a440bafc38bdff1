"""The pods' own command lines and probes, as a kubelet would use them, on this machine."""

import os
import signal
import ssl
import urllib.error
import urllib.request

import pytest
from certificates import issue
from kubernetes import KUSTOMIZE, pod_of
from serving_process import LOOPBACK, serving
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.client import Client, Tls

pytestmark = pytest.mark.skipif(
    KUSTOMIZE is None and "CI" not in os.environ, reason="neither kustomize nor kubectl is here"
)
DEFAULT_GRACE_S = 30  # of a pod that sets none


def start(pod: dict, files: dict[str, str]):
    """Run the container's arguments with this machine's paths and free ports."""
    (container,) = pod["containers"]
    bundle, *arguments = container["args"]
    files = files | {"0.0.0.0:8500": LOOPBACK, "0.0.0.0:8501": LOOPBACK}
    options = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        options.append(option + equals + files.get(value, value))
    return serving(files[bundle], *options)


def probe(pod: dict, kind: str, http: str) -> int:
    """Ask as a kubelet does, which looks at no certificate; returns the status."""
    (container,) = pod["containers"]
    asked = container[kind]["httpGet"]
    (port,) = (port for port in container["ports"] if port["name"] == asked["port"])
    assert f"--http=0.0.0.0:{port['containerPort']}" in container["args"]
    url = f"{asked.get('scheme', 'HTTP').lower()}://{http}{asked['path']}"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture(params=[("base", "Deployment"), ("kserve", "ClusterServingRuntime")])
def pod(request) -> dict:
    return pod_of(*request.param)


def test_a_pod_starts_answers_its_probes_and_says_when_it_is_to_stop(pod, tmp_path):
    issued = issue(tmp_path)
    tokens = tmp_path / "tokens"
    tokens.write_text("tester an-entirely-secret-token\n")
    bundle = str(write_tiny_bundle(tmp_path / "tiny.bundle"))
    files = {
        "/bundle/model.bundle": bundle,
        "/mnt/models": bundle,
        "/tls/tls.crt": str(issued.certificate),
        "/tls/tls.key": str(issued.key),
        "/tokens/tokens": str(tokens),
    }
    with start(pod, files) as server:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert probe(pod, kind, server.http) == 200, kind
        (container,) = pod["containers"]
        encrypted = "--insecure" not in container["args"]
        known = {"tls": Tls(ca=issued.ca), "token": "an-entirely-secret-token"} if encrypted else {}
        with Client(server.address, **known) as client:
            (result,) = client.classify([jpeg(0)], timeout_s=10)
            assert result.scores
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.stderr.readline().strip()  # it has begun to stop
        assert probe(pod, "readinessProbe", server.http) == 503
        assert probe(pod, "livenessProbe", server.http) == 200


def test_a_pod_has_the_time_that_its_server_takes_to_stop(pod):
    (container,) = pod["containers"]
    given = dict(each.removeprefix("--").partition("=")[::2] for each in container["args"])
    needed_s = float(given["grace-s"]) + float(given["stop-timeout-s"])
    assert pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S) > needed_s


def test_a_pod_runs_as_the_image_s_user_on_a_root_that_is_read_only(pod):
    """tests/long/image.py runs the image so."""
    (container,) = pod["containers"]
    allowed = pod.get("securityContext", {}) | container["securityContext"]
    assert (allowed["runAsUser"], allowed["runAsNonRoot"]) == (10001, True)
    assert allowed["readOnlyRootFilesystem"]
    assert allowed["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]
