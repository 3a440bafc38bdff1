"""Real proxies before real servers, with the configurations of deploy/proxies."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from certificates import Issued
from project import ROOT

FILES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "envoy": "envoy.yaml"}
NGINX = """
daemon off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include {file};
}}
"""  # as nginx.conf is around the files of conf.d, but without paths of the system


def program(kind: str) -> str:
    """Find the proxy's program; skips the test where it is not installed, and in CI."""
    if os.environ.get("CI"):
        pytest.skip(f"needs {kind}, which is no part of CI")
    return shutil.which(kind) or pytest.skip(f"needs {kind}, which is not installed")


def configuration(kind: str) -> str:
    return (ROOT / "deploy" / "proxies" / FILES[kind]).read_text()


class Proxy:
    """A proxy on a free port, with its file of deploy/proxies."""

    def __init__(
        self,
        kind: str,
        servers: Sequence[tuple[str, str]],
        issued: Issued,
        folder: Path,
        edits: Mapping[str, str],
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._kind, self._folder, self._file = kind, folder, folder / FILES[kind]
        text = configuration(kind)
        for old, new in edits.items():
            assert old in text, f"{FILES[kind]} has no {old!r}"
            text = text.replace(old, new)
        for old, new in self._places(servers, issued).items():
            text = text.replace(old, new)
        self._file.write_text(text)
        (folder / "outer.conf").write_text(NGINX.format(file=self._file))
        self._processes: list[subprocess.Popen] = []
        self._start()

    def _places(self, servers: Sequence[tuple[str, str]], issued: Issued) -> dict[str, str]:
        """What the file says, and what it is here: addresses, certificates, names."""
        both = self._folder / "proxy.pem"
        both.write_bytes(issued.certificate.read_bytes() + issued.key.read_bytes())
        places = {
            "listen 8443": f"listen {self.address}",
            "bind :8443": f"bind {self.address}",
            "{address: 0.0.0.0, port_value: 8443}": _envoy(self.address),
            "/etc/irv2/proxy.crt": str(issued.certificate),
            "/etc/irv2/proxy.key": str(issued.key),
            "/etc/irv2/proxy.pem": str(both),
            "/etc/irv2/ca.pem": str(issued.ca),
            "irv2.internal": "localhost",
        }
        for number, (grpc, http) in enumerate(servers, 1):
            theirs = f"10.0.0.{number}:8500"
            check = http.rpartition(":")[2]
            places[f"{theirs} check port 8501"] = f"{grpc} check port {check}"
            places[theirs] = grpc
            places[_envoy(theirs)] = _envoy(grpc)
        return places

    def reload(self) -> None:
        """Put new processes in place of the old ones, which finish what they have."""
        if self._kind == "envoy":
            self._start()
            self._processes[-2].wait(timeout=30)
        else:
            signals = {"nginx": signal.SIGHUP, "haproxy": signal.SIGUSR2}
            self._processes[0].send_signal(signals[self._kind])

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(timeout=30)

    def _start(self) -> None:
        options = {
            "nginx": ["-p", self._folder, "-e", "stderr", "-c", self._folder / "outer.conf"],
            "haproxy": ["-W", "-db", "-f", self._file],
            "envoy": [
                *("-c", self._file, "--log-level", "error", "--concurrency", "1"),
                *("--base-id", str(self._port), "--restart-epoch", str(len(self._processes))),
                *("--drain-time-s", "1", "--parent-shutdown-time-s", "2"),
            ],
        }[self._kind]
        with (self._folder / "proxy.log").open("a") as log:
            self._processes.append(subprocess.Popen([program(self._kind), *options], stderr=log))


@contextmanager
def proxied(
    kind: str,
    servers: Sequence[tuple[str, str]],
    issued: Issued,
    folder: Path,
    edits: Mapping[str, str] | None = None,
):
    """A proxy that listens, before servers given as (gRPC address, HTTP address).

    `issued` is its certificate, and the authority that must have signed those of the servers.
    `edits` say what to write in place of what must be in its file.
    """
    proxy = Proxy(kind, servers, issued, folder, edits or {})
    try:
        until = time.monotonic() + 20
        while not _listens(proxy.address):
            assert time.monotonic() < until, (folder / "proxy.log").read_text()
            time.sleep(0.02)
        yield proxy
    finally:
        proxy.stop()


def _envoy(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{{address: {host}, port_value: {port}}}"


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False
