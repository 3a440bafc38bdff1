"""The files in deploy/ are about this server: its options, its paths, its metrics."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from project import ROOT
from serving_site import request, scenario_with
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.serve.cli import main
from irv2.serve.options import ShadowOptions

DEPLOY = ROOT / "deploy"


@pytest.fixture
def metrics(tmp_path) -> set[str]:
    """The names in /metrics of a server with a shadow that has seen a request."""
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "tiny.bundle"))
    shadow = ShadowOptions(bundle=bundle.path)
    found = set()

    async def scenario(site):
        await site.stub.Classify(request(0))
        text = site.server.metrics_text().decode()
        found.update(re.findall(r"^([a-z][\w]*)", text, re.MULTILINE))
        found.update(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))

    scenario_with(bundle, scenario, shadow=shadow)
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


@pytest.fixture
def stages() -> dict[str, str]:
    """The Dockerfile's stages by name; tests/long/image.py builds and runs `serve`."""
    text = (ROOT / "Dockerfile").read_text()
    names = re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)
    return dict(zip(names, re.split(r"^FROM .*$", text, flags=re.MULTILINE)[1:], strict=True))


@pytest.mark.parametrize("stage", ["wheel", "serve-packages", "gpu-packages"])
def test_the_stages_that_install_take_a_mirror_and_a_certificate(stages, stage):
    assert {"ARG PIP_INDEX_URL=", "ARG CA_FILE="} <= set(stages[stage].splitlines())


@pytest.mark.parametrize("target", ["serve", "gpu"])
def test_an_image_copies_nothing_but_the_packages_and_is_not_root(stages, target):
    lines = stages[target].splitlines()
    copied = f"COPY --from={target}-packages /opt/irv2 /opt/irv2"
    assert [line for line in lines if line.startswith(("COPY", "ADD"))] == [copied]
    assert "pip" not in stages[target]
    assert "USER 10001" in lines


def test_make_says_in_one_line_that_no_builder_of_images_answers(tmp_path):
    done = subprocess.run(
        ["make", "--no-print-directory", "image", "BUILDER="],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no builder of images answers; expected docker")


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


DPKG_STATUS = """\
Package: libssl3
Status: install ok installed
Architecture: amd64
Source: openssl
Version: 3.0.19-1
Description: x

Package: login
Status: hold ok installed
Architecture: amd64
Source: shadow (1:4.13)
Version: 1:4.13+b1
Description: x

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
Description: x
"""


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="no dpkg here")
def test_the_list_of_an_images_packages_has_those_of_debian_that_are_installed(tmp_path):
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    bill = tmp_path / "sbom.cdx.json"
    python = {"type": "library", "bom-ref": "numpy", "name": "numpy", "version": "2.0"}
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    command = [sys.executable, DEPLOY / "image/system_packages.py", bill]
    (tmp_path / "status").write_text(DPKG_STATUS)

    def add(components: list[dict]) -> subprocess.CompletedProcess[str]:
        bill.write_text(json.dumps({**head, "components": components}))
        environment = os.environ | {"DPKG_ADMINDIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert add([python]).returncode == 0
    found = json.loads(bill.read_text())
    kept, system, *debian = found["components"]
    base = f"{system['name']}-{system['version']}"
    assert (kept, system["type"]) == (python, "operating-system")
    assert [
        each["purl"].replace(base, "BASE").replace(system["name"], "OS") for each in debian
    ] == [
        "pkg:deb/OS/libssl3@3.0.19-1?arch=amd64&distro=BASE&upstream=openssl",
        "pkg:deb/OS/login@1:4.13%2Bb1?arch=amd64&distro=BASE&upstream=shadow%401:4.13",
    ]
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    assert validator.validate_str(bill.read_text()) is None

    refused = add([{"name": "of no type"}])  # here as the tool before ours would have written it
    assert refused.returncode == 1
    assert "with the packages of" in refused.stderr
