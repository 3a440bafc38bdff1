"""The autoscalers' queries, asked of a real Prometheus that scrapes real servers under load."""

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest
import yaml
from kubernetes import FOLDER, KUSTOMIZE, one
from PIL import Image
from serving_process import LOOPBACK, get, serving
from tiny_bundle import write_tiny_bundle

from irv2.client import Client

pytestmark = [
    pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not here"),
    pytest.mark.skipif(KUSTOMIZE is None, reason="neither kustomize nor kubectl is here"),
    pytest.mark.slow,
    pytest.mark.alone,
]
CLIENTS = (6, 2)  # of the busier server and of the other: waits that differ
PATIENCE_S = 60


class Prometheus:
    """Scrapes these addresses every quarter of a second, as the ServiceMonitor's job `irv2`."""

    def __init__(self, folder, targets: list[str]) -> None:
        jobs = [{"job_name": "irv2", "static_configs": [{"targets": targets}]}]
        settings = {"global": {"scrape_interval": "250ms"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.popen = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self.address}",
                "--log.level=error",
            ]
        )

    def ask(self, query: str) -> dict[str, float]:
        """Each series' value by its instance; "" for a sum."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as response:
            found = json.load(response)["data"]["result"]
        return {each["metric"].get("instance", ""): float(each["value"][1]) for each in found}

    def wait_for(self, query: str, is_right) -> dict[str, float]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                if is_right(found := self.ask(query)):
                    return found
            except (urllib.error.URLError, ConnectionError):  # it starts
                assert self.popen.poll() is None
            time.sleep(0.1)
        raise AssertionError(f"{query}: {found}")


@contextmanager
def scraping(folder, targets: list[str]):
    prometheus = Prometheus(folder, targets)
    try:
        yield prometheus
    finally:
        prometheus.popen.terminate()
        prometheus.popen.wait(timeout=30)


def photograph() -> bytes:
    """A small file that takes long to decode, so that a wait builds up in front of one decoder."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((6000, 4000)).save(buffer, "JPEG")
    return buffer.getvalue()


@contextmanager
def load_on(address: str, num_clients: int, image: bytes):
    """Clients that never stop asking; yields the seconds that each answer took."""
    leave, seconds = threading.Event(), []

    def keep_asking() -> None:
        with Client(address) as client:
            while not leave.is_set():
                began = time.monotonic()
                (result,) = client.classify([image], timeout_s=30)
                assert result.scores, result.error
                seconds.append(time.monotonic() - began)

    threads = [threading.Thread(target=keep_asking) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        leave.set()
        for thread in threads:
            thread.join()


def predicted_wait_s(http: str) -> float:
    """What the server says of itself at this moment."""
    _, text = get(http, "/metrics")
    return float(re.search(r"^irv2_predicted_wait_seconds (\S+)$", text, re.MULTILINE)[1])


def mean(seconds: list[float]) -> float:
    return sum(seconds) / len(seconds)


def test_the_autoscalers_see_the_wait_of_the_servers_that_take_requests(tmp_path):
    (trigger,) = one("overlays/keda", "ScaledObject")["spec"]["triggers"]
    keda = trigger["metadata"]["query"]
    (rule,) = yaml.safe_load((FOLDER / "components/hpa/adapter-values.yaml").read_text())["rules"][
        "custom"
    ]
    hpa = (
        rule["metricsQuery"]
        .replace("<<.Series>>", rule["name"]["as"])
        .replace("<<.LabelMatchers>>", 'job="irv2"')
        .replace("<<.GroupBy>>", "instance")
    )
    bundle, image = write_tiny_bundle(tmp_path / "tiny.bundle"), photograph()
    options = ("--workers", "1", "--threads", "1", "--grace-s", "60", "--http", LOOPBACK)
    with (
        serving(bundle, *options) as busy,
        serving(bundle, *options) as calm,
        load_on(busy.address, CLIENTS[0], image) as long,
        load_on(calm.address, CLIENTS[1], image),
        scraping(tmp_path, [busy.http, calm.http]) as prometheus,
    ):
        prometheus.wait_for("irv2_ready", lambda found: len(found) == 2)
        ours = {busy.http: [], calm.http: []}
        for _ in range(30):
            for http, waits in ours.items():
                waits.append(predicted_wait_s(http))
            time.sleep(0.1)
        by_pod, total = prometheus.ask(hpa), prometheus.ask(keda)[""]
        assert by_pod == pytest.approx({http: mean(waits) for http, waits in ours.items()}, rel=0.5)
        assert mean(long) / 2 < by_pod[busy.http] < mean(long) * 2, "what clients wait"
        assert by_pod[busy.http] > by_pod[calm.http]
        assert total == pytest.approx(sum(by_pod.values()), rel=0.2)
        # A server that is to stop still answers, but takes no more part.
        calm.popen.send_signal(signal.SIGTERM)
        (left,) = prometheus.wait_for(
            keda, lambda found: found and found[""] < total - by_pod[calm.http] / 2
        ).values()
        assert left == pytest.approx(prometheus.ask(hpa)[busy.http], rel=0.2)
