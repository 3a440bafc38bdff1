"""A real registry of container images on loopback, where Debian's docker-registry is installed."""

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

AFAR = "127.0.0.2"  # this machine, but not by a name that stands for it
PROGRAM = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(not PROGRAM, reason="docker-registry is not installed")


@dataclass(frozen=True)
class RunningRegistry:
    """Where it listens, where it keeps its files, and its process."""

    host: str
    storage: Path
    process: subprocess.Popen

    def blob(self, digest: str) -> Path:
        kind, _, name = digest.partition(":")
        return self.storage / "docker/registry/v2/blobs" / kind / name[:2] / name / "data"


@contextmanager
def registry(
    folder: Path, more: str = "", certificate: Path | None = None, address: str = "127.0.0.1"
) -> Iterator[RunningRegistry]:
    """Start one; `more` is YAML of its configuration.

    With a certificate, and its key in the same file, it speaks TLS.
    """
    tls = f", tls: {{certificate: {certificate}, key: {certificate}}}" if certificate else ""
    with socket.socket() as free:
        free.bind((address, 0))
        port = free.getsockname()[1]
    storage, config = folder / "storage", folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
        f"http: {{addr: '{address}:{port}'{tls}}}\n{more}"
    )
    process = subprocess.Popen(
        [PROGRAM, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex((address, port)) == 0:
                    break
            time.sleep(0.02)
        yield RunningRegistry(f"{address}:{port}", storage, process)
    finally:
        process.kill()
        process.wait()


def password_required(folder: Path) -> str:
    """Configuration of a registry that asks who one is: me, with the password `secret`."""
    bcrypt = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
    (folder / "htpasswd").write_text(f"me:{bcrypt}\n")
    return f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}\n"


def log_in(folder: Path, host: str, password: str = "secret") -> None:
    """Write a configuration as `docker login` leaves it, for $DOCKER_CONFIG."""
    entry = {"auth": base64.b64encode(f"me:{password}".encode()).decode()}
    (folder / "config.json").write_text(json.dumps({"auths": {host: entry}}))


def write_certificate(
    path: Path, authority: trustme.CA, *names: str, until: datetime | None = None
) -> Path:
    """Write a certificate and its key to one PEM file; of AFAR unless names are given."""
    began = datetime.now(UTC) - timedelta(days=3)
    issued = authority.issue_cert(*(names or (AFAR,)), not_before=began, not_after=until)
    issued.private_key_and_cert_chain_pem.write_to_path(path)
    return path
