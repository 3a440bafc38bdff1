"""The pods' own command lines and probes, as a kubelet would use them, on this machine."""

import os
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from certificates import issue
from kubernetes import KUSTOMIZE, pod_of
from process_output import read_line
from serving_process import LOOPBACK, serving
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client, Tls

pytestmark = pytest.mark.skipif(
    KUSTOMIZE is None and "CI" not in os.environ, reason="neither kustomize nor kubectl is here"
)
DEFAULT_GRACE_S = 30  # of a pod that sets none


TOKEN = "an-entirely-secret-token"


def arguments_of(pod: dict, files: dict[str, Path]) -> list[str]:
    """The container's arguments with this machine's paths and free ports."""
    (container,) = pod["containers"]
    here = files | {"0.0.0.0:8500": LOOPBACK, "0.0.0.0:8501": LOOPBACK}
    parts = [argument.rpartition("=") for argument in container["args"]]
    return [f"{option}{equals}{here.get(value, value)}" for option, equals, value in parts]


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """What the server's pods mount, by the path in them."""
    issued = issue(tmp_path)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"tester {TOKEN}\n")
    bundle = write_tiny_bundle(tmp_path / "volume" / "model.bundle")
    return {
        "/bundle/model.bundle": bundle,
        "/mnt/models": bundle,
        "/tls/tls.crt": issued.certificate,
        "/tls/tls.key": issued.key,
        "/tls/ca.crt": issued.ca,
        "/tokens/tokens": tokens,
    }


def client_of(pod: dict, address: str, files: dict[str, Path]) -> Client:
    (container,) = pod["containers"]
    if "--insecure" in container["args"]:
        return Client(address)
    return Client(address, tls=Tls(ca=files["/tls/ca.crt"]), token=TOKEN)


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


def test_a_pod_starts_answers_its_probes_and_says_when_it_is_to_stop(pod, files):
    with serving(*arguments_of(pod, files)) as server:
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert probe(pod, kind, server.http) == 200, kind
        with client_of(pod, server.address, files) as client:
            (result,) = client.classify([jpeg(0)], timeout_s=10)
            assert result.scores
        server.popen.send_signal(signal.SIGTERM)
        assert read_line(server.popen.stderr).strip()  # it has begun to stop
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


@pytest.mark.slow
def test_the_export_job_gives_the_servers_what_passed_and_nothing_else(
    project, environment, sample, files
):
    pod = pod_of("base", "Deployment")
    claims = files | {
        "/data": sample,
        "/runs/imagenet/best.pt": project / "runs" / "setting-2" / "best.pt",
    }
    job = ["irv2", *arguments_of(pod_of("export", "Job"), claims)]
    too_few_for_int8 = ["--limit=20", "--calibration-images=8", "--calibration-method=minmax"]
    before = Bundle.open(files["/bundle/model.bundle"]).id
    with serving(*arguments_of(pod, files)) as server:
        refused = subprocess.run([*job, *too_few_for_int8], env=environment)
        assert refused.returncode == 3
        with client_of(pod, server.address, files) as client:
            assert client.model().id == before
            subprocess.run([*job, "--precision=fp32"], env=environment, check=True)  # soon done
            lines = iter(server.popen.stderr.readline, "")
            assert any('"reloaded' in line for line in lines)
            assert client.model().id == Bundle.open(files["/bundle/model.bundle"]).id != before
