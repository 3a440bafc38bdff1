"""A new bundle beside the old one: tried, swapped in, and no request lost; or left alone."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving_process import LOOPBACK, Process, get, load_on, replace_bundle, serving
from serving_site import jpeg
from signing import key_pair
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client
from irv2.trust.keys import read_signer
from irv2.trust.sign import sign


@pytest.fixture
def place(tmp_path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.bundle")


def wait_for_line(process: Process, beginning: str) -> str:
    for line in process.popen.stderr:
        if line.startswith(beginning):
            return line
    raise AssertionError(f"the server has stopped without {beginning!r}")


def served_by(process: Process) -> str:
    with Client(process.address) as client:
        return client.model().id


def test_sighup_swaps_models_under_load_and_no_request_fails(place):
    with serving(place, "--http", LOOPBACK) as process, load_on(process.address) as failures:
        for seed in (1, 2, 3):
            model_id = replace_bundle(place, seed=seed)
            process.popen.send_signal(signal.SIGHUP)
            line = wait_for_line(process, "reloaded ")
            assert f"model={model_id[:12]} " in line
            assert served_by(process) == model_id
        text = get(process.http, "/metrics")[1]
    assert not failures
    assert 'irv2_reloads_total{outcome="ok"} 3.0' in text
    assert text.count("irv2_model_info{") == 1
    assert (
        f'irv2_model_info{{artifact="model.onnx",backend="onnxruntime-cpu",model_id="{model_id}"'
        in text
    )


def test_with_watch_a_new_bundle_is_served_by_itself_a_bad_one_never(place):
    with serving(place, "--watch", "--http", LOOPBACK) as process:
        first = Bundle.open(place).id
        replace_bundle(place, seed=1, passes_self_test=False)
        line = wait_for_line(process, "reload_failed ")
        assert "self-test with onnxruntime-cpu: 1 of 1 known images" in line
        assert served_by(process) == first
        second = replace_bundle(place, seed=2)
        wait_for_line(process, "reloaded ")
        assert served_by(process) == second
        assert get(process.http, "/readyz")[0] == 200
        assert 'irv2_reloads_total{outcome="failed"} 1.0' in get(process.http, "/metrics")[1]


def spoil(place: Path) -> None:
    with (place / "model.onnx").open("ab") as model:
        model.write(b"x")


@pytest.mark.parametrize("damage", [spoil, shutil.rmtree])
def test_a_broken_bundle_is_one_log_line_and_the_old_one_serves_on(damage, place):
    with serving(place) as process, Client(process.address) as client:
        first = client.model().id
        damage(place)
        process.popen.send_signal(signal.SIGHUP)
        wait_for_line(process, "reload_failed ")
        assert client.classify([jpeg(0)])[0].scores
        assert served_by(process) == first
        process.popen.send_signal(signal.SIGTERM)
        wait_for_line(process, "stopping ")


def test_with_a_required_signature_nothing_else_is_served_at_the_start_or_later(place, tmp_path):
    ours, theirs = key_pair(tmp_path, "ours"), key_pair(tmp_path, "theirs")
    options = ("--require-signature", str(ours.public))
    command = [sys.executable, "-m", "irv2", "serve", str(place), "--listen", LOOPBACK, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"error: {place}: is not signed: no model.sig in it" in done.stderr

    sign(place, read_signer(ours.private))
    with serving(place, *options, "--watch") as process:
        first = served_by(process)
        replace_bundle(place, seed=1)
        assert "is not signed" in wait_for_line(process, "reload_failed ")
        sign(place, read_signer(theirs.private))
        assert "was made with the key" in wait_for_line(process, "reload_failed ")
        assert served_by(process) == first
        sign(place, read_signer(ours.private))
        wait_for_line(process, "reloaded ")
        assert served_by(process) == Bundle.open(place).id != first


def test_a_server_does_not_start_on_an_engine_that_answers_wrongly(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "tiny.bundle", passes_self_test=False)
    command = [sys.executable, "-m", "irv2", "serve", str(bundle), "--listen", LOOPBACK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: self-test with onnxruntime-cpu: 1 of 1 known images")
    assert done.stderr.count("\n") == 1


def test_sigterm_during_a_reload_stops_the_server_all_the_same(place):
    with serving(place, "--grace-s", "0") as process:
        replace_bundle(place, seed=1)
        process.popen.send_signal(signal.SIGHUP)
        time.sleep(0.02)
        exit_code, stderr = process.stop(signal.SIGTERM)
        assert (exit_code, "Traceback" in stderr) == (0, False)
