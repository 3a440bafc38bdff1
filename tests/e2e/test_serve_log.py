"""What a server writes is never in its way, whoever reads it, and is JSON if asked for."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_output import read_line
from serving_process import LOOPBACK, get
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.client import Client


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("log") / "tiny.bundle")


def command(bundle: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "irv2", "serve", str(bundle), "--listen", LOOPBACK, *options]


@contextmanager
def started(bundle: Path, *options: str, **streams):
    """A server that is killed if it is still there at the end."""
    popen = subprocess.Popen(command(bundle, *options), text=True, **streams)
    try:
        yield popen
    finally:
        popen.kill()
        popen.communicate()


@contextmanager
def unread():
    """The end of a pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    yield writer
    os.close(writer)
    os.close(reader)


@contextmanager
def no_reader():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def full_disk():
    with Path("/dev/full").open("w") as full:
        yield full


@pytest.mark.parametrize("place", [unread, no_reader, full_disk])
def test_a_log_that_cannot_be_written_does_not_hold_up_the_server(place, bundle):
    options = ("--json", "--http", LOOPBACK, "--log-requests", "--grace-s", "0.1")
    with (
        place() as stderr,
        started(bundle, *options, stdout=subprocess.PIPE, stderr=stderr) as popen,
    ):
        text = ""
        while not text.endswith("}\n"):
            line = read_line(popen.stdout)
            assert line, "it ended before it was ready"
            text += line
        ready = json.loads(text)
        with Client(ready["listen"]) as client:
            for number in range(20):
                assert client.classify([jpeg(number)])[0].scores
        assert get(ready["http"], "/healthz")[0] == 200
        lines = get(ready["http"], "/metrics")[1].splitlines()
        num_lost = next(line for line in lines if line.startswith("irv2_log_lines_lost_total "))
        is_some = float(num_lost.split()[1]) > 0
        assert is_some == (place is not unread), "for a pipe they wait: its reader may come back"
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(timeout=10) == 0


@pytest.mark.parametrize("place", [unread, no_reader, full_disk])
def test_stdout_that_cannot_be_written_does_not_hold_up_the_server(place, bundle):
    with (
        place() as stdout,
        started(bundle, "--json", stdout=stdout, stderr=subprocess.PIPE) as popen,
    ):
        lines = []
        while not lines or not lines[-1].startswith("ready "):
            lines.append(read_line(popen.stderr))
            assert lines[-1], lines
        with Client(lines[-1].split()[1]) as client:
            assert client.classify([jpeg(0)])[0].scores
        popen.send_signal(signal.SIGINT)
        _, rest = popen.communicate(timeout=10)
        assert popen.returncode == 130, rest
        told = "".join([*lines, rest])
        assert ("stdout_failed" in told) == (place is not unread)
        assert "Traceback" not in told


def test_with_json_every_line_but_the_first_ready_line_is_an_object(bundle):
    options = ("--log-format", "json", "--grace-s", "0.1")
    environment = os.environ | {"PYTHONWARNINGS": "always"}
    with started(bundle, *options, stderr=subprocess.PIPE, env=environment) as popen:
        entries = []
        while not (line := read_line(popen.stderr)).startswith("ready 127.0.0.1:"):
            entries.append(json.loads(line))
        twin = json.loads(read_line(popen.stderr))
        assert (twin["level"], twin["message"]) == ("info", line.strip())
        popen.send_signal(signal.SIGTERM)
        _, stderr = popen.communicate(timeout=10)
    entries = [json.loads(line) for line in stderr.splitlines()]
    assert [entry["message"] for entry in entries] == ["stopping grace_s=0.1"]


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--grace-s", "inf", "--log-format", "json"], 2, "error: Invalid value for '--grace-s'"),
        (["--log-format", "json", "--max-queue", "1"], 2, "error: --max-queue: 1; expected"),
        (["--debug", "--log-format", "json", "--max-queue", "1"], 2, "error: --max-queue: 1;"),
        (["--log-format", "json", "--listen", "192.0.2.1:1", "--insecure"], 1, "error: 192.0.2.1"),
    ],
)
def test_with_json_a_start_that_fails_is_an_object(options, exit_code, message, bundle):
    done = subprocess.run(command(bundle, *options), capture_output=True, text=True, timeout=60)
    assert done.returncode == exit_code, done.stderr
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert entries[-1]["level"] == "error"
    assert entries[-1]["message"].startswith(message)
    assert len(entries) == 1 or "--debug" in options
