"""No program speaks to anybody whom its user did not name.

All ways out lead through a proxy that only counts, as it does for the libraries that we use: they
take it from the environment. Before it was switched off, ONNX Runtime's telemetry came to it from
10 seconds after the start on.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from hub_endpoint import hub_endpoint, repository_files
from process_output import read_line
from serving_process import LOOPBACK
from serving_site import jpeg

LONG_ENOUGH_S = 25


@contextmanager
def counting_proxy():
    """Its environment, and the first lines of what was asked of it."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def count() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                with connection:
                    asked.append(connection.recv(4096).partition(b"\r\n")[0])

        threading.Thread(target=count, daemon=True).start()
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        names = ("http_proxy", "https_proxy", "all_proxy")
        settings = {name: proxy for each in names for name in (each, each.upper())}
        loopback = {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}
        yield {**settings, **loopback}, asked
        listener.shutdown(socket.SHUT_RDWR)


def test_the_proxy_is_asked_by_whoever_wants_out():
    ask = "import urllib.request; urllib.request.urlopen('http://example.com')"
    with counting_proxy() as (settings, asked):
        subprocess.run([sys.executable, "-c", ask], env={**os.environ, **settings}, check=False)
        (line,) = asked
        assert b"example.com" in line


def test_an_import_by_name_asks_the_hub_alone(environment, tmp_path):
    command = ["irv2", "import", "hf:ants/tiny", "-o", tmp_path / "a.pt"]
    with hub_endpoint("ants/tiny", repository_files()) as hub, counting_proxy() as (proxy, asked):
        mine = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(command, env={**environment, **proxy, **mine}, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert len(hub.asked) > 0
    assert asked == []


@pytest.mark.slow
def test_no_program_asks_anybody(project, bundle, environment, tmp_path):
    best = str(project / "runs" / "setting-2" / "best.pt")
    picture = tmp_path / "pictures" / "picture.jpg"
    picture.parent.mkdir()
    picture.write_bytes(jpeg(0))
    batch = ["irv2", "batch", str(picture.parent)]
    programs = [
        ["irv2-train", "--setting", "2", "--epochs", "1", "--out", str(tmp_path / "run")],
        ["irv2-export", best, "--precision", "int8", "--out", str(tmp_path / "b.bundle")],
        ["irv2", "verify", str(tmp_path / "b.bundle")],
        ["irv2", "eval", str(bundle)],
        ["irv2-classify", str(picture), "--bundle", str(bundle)],
        [*batch, str(tmp_path / "here.parquet"), "--bundle", str(bundle)],
    ]
    with counting_proxy() as (settings, asked):
        settings = {**environment, **settings}
        settings.pop("CI", None)  # OpenVINO's telemetry is silent where it is set
        began = time.monotonic()
        serve = ["irv2-serve", str(bundle), "--listen", LOOPBACK, "--grace-s", "0"]
        server = subprocess.Popen(serve, env=settings, stderr=subprocess.PIPE, text=True)
        address = read_line(server.stderr).split()[1]
        programs.append(["irv2-classify", str(picture), "--server", address])
        programs.append([*batch, str(tmp_path / "asked.parquet"), "--server", address])
        for program in programs:
            subprocess.run(program, env=settings, check=True, capture_output=True)
        time.sleep(max(0.0, began + LONG_ENOUGH_S - time.monotonic()))
        server.terminate()
        server.communicate()
    assert asked == []
