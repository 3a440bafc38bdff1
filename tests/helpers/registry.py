"""A real registry of container images on loopback, where Debian's docker-registry is installed."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

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
def registry(folder: Path, auth: str = "") -> Iterator[RunningRegistry]:
    """Start one; `auth` is YAML of its configuration."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    storage, config = folder / "storage", folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    process = subprocess.Popen(
        [PROGRAM, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield RunningRegistry(f"127.0.0.1:{port}", storage, process)
    finally:
        process.kill()
        process.wait()
