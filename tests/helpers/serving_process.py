"""The server as a process, asked over loopback and stopped by real signals."""

import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from process_output import read_line
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client, Tls

LOOPBACK = "127.0.0.1:0"


class Process:
    """`irv2 serve` and what its ready line says."""

    def __init__(self, bundle: Path, *options: str, prefix: Sequence[str] = ()) -> None:
        command = [
            *prefix,
            sys.executable,
            "-m",
            "irv2",
            "serve",
            str(bundle),
            "--listen",
            LOOPBACK,
        ]
        self.popen = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        self.ready_line = read_line(self.popen.stderr)
        match = re.match(r"ready (\S+) ", self.ready_line)
        assert match, self.ready_line + self.popen.stderr.read()
        self.address = match[1]
        http = re.search(r"http=(\S+)", self.ready_line)
        self.http = http and http[1]

    def stop(self, signal_number: int) -> tuple[int, str]:
        self.popen.send_signal(signal_number)
        _, stderr = self.popen.communicate(timeout=30)
        return self.popen.returncode, stderr


@contextmanager
def serving(bundle: Path, *options: str, prefix: Sequence[str] = ()):
    process = Process(bundle, *options, prefix=prefix)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.communicate()


def get(address: str, path: str, ca: Path | None = None) -> tuple[int, str]:
    """Status and text of the operators' port; with an authority, over TLS."""
    scheme, context = ("https", ssl.create_default_context(cafile=ca)) if ca else ("http", None)
    url = f"{scheme}://{address}{path}"
    try:
        with urllib.request.urlopen(url, timeout=10, context=context) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def replace_bundle(place: Path, **tiny) -> str:
    """Put another tiny bundle in its place, as an export does; returns its id."""
    new = write_tiny_bundle(place.with_name(f".{place.name}.new"), **tiny)
    model_id = Bundle.open(new).id
    aside = place.with_name(f".{place.name}.{os.getpid()}.old")
    place.rename(aside)
    new.rename(place)
    shutil.rmtree(aside)
    return model_id


@contextmanager
def load_on(address: str | list[str], num_threads: int = 3, tls: Tls | None = None):
    """Clients that never stop asking, one image at a time; yields their failures."""
    leave, failures = threading.Event(), []

    def keep_asking(number: int) -> None:
        with Client(address, tls=tls) as client:
            while not leave.is_set():
                try:
                    (result,) = client.classify([jpeg(number)], timeout_s=10)
                    assert result.scores, result.error
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=keep_asking, args=(n,)) for n in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        leave.set()
        for thread in threads:
            thread.join()
