"""The files in deploy/ are about this server: its options, its paths, its metrics."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from project import ROOT
from serving_site import request, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.serve.cli import main

DEPLOY = ROOT / "deploy"


@pytest.fixture
def metrics(tmp_path) -> set[str]:
    """The names in /metrics of a server that has seen a request."""
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle"))
    found = set()

    async def scenario(site):
        await site.stub.Classify(request(0))
        text = site.server.metrics_text().decode()
        found.update(re.findall(r"^([a-z][\w]*)", text, re.MULTILINE))
        found.update(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))

    scenario_with(bundle, scenario)
    return found


def test_the_dashboard_uses_metrics_that_exist_and_all_of_them(metrics):
    board = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = set(re.findall(r"\b(?:irv2|process)_\w+", " ".join(expressions)))
    assert used <= metrics
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in metrics}
    shown = {re.sub(r"_(bucket|sum|count|created|total)$", "", name) for name in used}
    ours = {name for name in families if name.startswith("irv2_")}
    assert shown >= ours, "an operator sees every metric of ours"
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])


@pytest.fixture(autouse=True)
def keep_stderr(monkeypatch):
    """The options of a server that starts take it over."""
    monkeypatch.setattr(sys, "stderr", sys.stderr)


def parse(arguments: list[str], files: Path) -> click.Context:
    """As the command line would; files that the machine would have are made here."""
    local = []
    for argument in arguments:
        option, equals, path = argument.rpartition("=")
        if path.startswith("/"):
            path = str(files / path.strip("/").replace("/", "-"))
            Path(path).touch()
        local.append(option + equals + path)
    return main.make_context("irv2-serve", local)


def test_the_unit_starts_the_server_with_options_it_has(tmp_path):
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "irv2-serve.service")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/irv2-serve")
    options = parse(arguments, tmp_path).params
    assert options["watch"]
    needed_s = options["grace_s"] + options["stop_timeout_s"]
    assert float(unit["Service"]["TimeoutStopSec"]) > needed_s


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_no_fault_with_the_unit(tmp_path):
    text = (DEPLOY / "irv2-serve.service").read_text().replace("/opt/irv2/bin/", "/bin/")
    unit = tmp_path / "irv2-serve.service"
    unit.write_text(text.replace("/bin/irv2-serve", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "irv2-serve.service" not in done.stderr, done.stderr


def test_the_pods_start_the_server_and_leave_it_time_to_stop(tmp_path):
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    deployment = next(each for each in documents if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parse(container["args"], tmp_path).params
    needed_s = options["grace_s"] + options["stop_timeout_s"]
    assert pod["terminationGracePeriodSeconds"] > needed_s
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert options["listen"].endswith(f":{ports['grpc']}")
    assert options["http"].endswith(f":{ports['http']}")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in ("/healthz", "/readyz")
        assert asked["scheme"] == "HTTPS", "with a certificate, both ports are encrypted"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
    ("heading", "file"),
    [("nginx", "nginx.conf"), ("HAProxy", "haproxy.cfg"), ("Envoy", "envoy.yaml")],
)
def test_the_page_about_proxies_explains_settings_that_the_files_have(heading, file):
    """tests/e2e/test_proxies.py runs the files, where there are proxies."""
    text = (DEPLOY / "proxies" / file).read_text()
    page = (ROOT / "docs" / "proxies.md").read_text()
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    first_columns = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    settings = [name for column in first_columns for name in re.findall(r"`([^`]+)`", column)]
    assert len(settings) > 5
    for setting in settings:
        assert all(part in text for part in setting.split(" ... ")), setting
