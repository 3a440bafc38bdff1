"""The server as a process, asked by the client and by `irv2 classify`, stopped by real signals."""

import errno
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import simplejpeg
from certificates import issue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from process_output import read_line
from scripted_server import Scripted
from scripted_server import served as scripted
from serving_process import LOOPBACK, get, serving
from terminal import run_on_terminal
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client
from irv2.errors import ImageReason, NotServing, Overloaded, UsageError


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("serve") / "tiny.bundle")


@pytest.fixture(scope="module")
def server(bundle_path):
    with serving(bundle_path, "--http", LOOPBACK, "--max-image-pixels", "1000000") as process:
        yield process


def picture(number: int, height: int = 120, width: int = 100) -> np.ndarray:
    """Coarse noise; each number is another picture."""
    blocks = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
    image = blocks.repeat(-(-height // 6), 0).repeat(-(-width // 5), 1)[:height, :width]
    return np.ascontiguousarray(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Photographs' formats, two of them bad."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    for number, name in enumerate(("a.jpg", "b.png", "c.webp", "below/d.bmp")):
        Image.fromarray(picture(number, 90 + 20 * number)).save(folder / name)
    (folder / "text.jpg").write_text("not an image")
    whole = simplejpeg.encode_jpeg(picture(9))
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def irv2(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irv2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def assert_one_error_line(done: subprocess.CompletedProcess[str], exit_code: int) -> None:
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr


def assert_same(served, local) -> None:
    assert len(served) == len(local)
    for ours, theirs in zip(served, local, strict=True):
        assert str(ours.error) == str(theirs.error)
        assert [(s.index, s.label) for s in ours.scores] == [
            (s.index, s.label) for s in theirs.scores
        ]
        # Batches of other sizes may round the last bit of a sum differently.
        np.testing.assert_allclose(
            [s.probability for s in ours.scores], [s.probability for s in theirs.scores], atol=1e-6
        )


def test_the_ready_line_names_what_is_served(server, bundle_path):
    model_id = Bundle.open(bundle_path).id
    what = f"model={model_id[:12]} precision=fp32 backend=onnxruntime-cpu artifact=model.onnx"
    assert f"{what} selftest=passed max_batch=8" in server.ready_line


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")
def test_its_threads_do_not_interrupt_those_that_run(server):
    ours = os.sched_getscheduler(0)  # the default one, unless these tests were started otherwise
    expected = os.SCHED_BATCH if ours == os.SCHED_OTHER else ours
    assert os.sched_getscheduler(server.popen.pid) == expected  # its threads inherit it


def test_with_json_the_ready_line_is_an_object_on_stdout(bundle_path):
    command = [sys.executable, "-m", "irv2", "serve", str(bundle_path), "--listen", LOOPBACK]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--json"], stdout=pipe, stderr=pipe, text=True) as popen:
        address = read_line(popen.stderr).split()[1]
        popen.send_signal(signal.SIGINT)
        stdout, _ = popen.communicate(timeout=30)
    answer = json.loads(stdout)
    assert (answer["listen"], answer["precision"], answer["http"]) == (address, "fp32", None)
    assert answer["model_id"] == Bundle.open(bundle_path).id


def test_the_client_gets_what_the_bundle_gives_without_a_server(server, bundle_path, folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [*files, str(files[0]), files[0].read_bytes(), picture(5), *map(picture, range(70))]
    with Client(server.address) as client:
        served = client.classify(images, top_k=3)
        assert client.model().id == Bundle.open(bundle_path).id
    assert_same(served, Bundle.open(bundle_path).classify(images, top_k=3))
    assert {result.error.reason for result in served if result.error} == {
        ImageReason.NOT_AN_IMAGE,
        ImageReason.TRUNCATED,
    }


def test_several_addresses_take_turns_and_stand_in_for_each_other(server, bundle_path):
    expected = Bundle.open(bundle_path).classify([picture(0)])
    second = serving(bundle_path, "--grace-s", "0")
    with second as process, Client([server.address, process.address]) as client:
        for _ in range(4):
            assert_same(client.classify([picture(0)]), expected)
        process.stop(signal.SIGTERM)
        for _ in range(4):
            assert_same(client.classify([picture(0)]), expected)


def test_each_kind_of_bad_image_fails_alone_with_its_reason(server):
    large = io.BytesIO()
    Image.new("RGB", (1100, 1100)).save(large, "PNG")
    bad = {
        b"": ImageReason.EMPTY,
        b"hello": ImageReason.NOT_AN_IMAGE,
        b"%PDF-1.7 ...": ImageReason.UNSUPPORTED,
        simplejpeg.encode_jpeg(picture(1))[:500]: ImageReason.TRUNCATED,
        large.getvalue(): ImageReason.TOO_MANY_PIXELS,
        bytes(16 * 2**20 + 1): ImageReason.TOO_LARGE,
        bytes(64 * 2**20): ImageReason.TOO_LARGE,  # too large for any message: seen by the client
    }
    with Client(server.address) as client:
        *results, good = client.classify([*bad, picture(0)], timeout_s=30)
    assert [result.error.reason for result in results] == list(bad.values())
    assert good.scores


def test_classify_prints_one_json_object_the_same_with_server_and_bundle(
    server, bundle_path, folder
):
    by_server = irv2("classify", folder, "--server", server.address, "--json", "--top-k", 2)
    by_bundle = irv2("classify", folder, "--bundle", bundle_path, "--json", "--top-k", 2)
    answers = [json.loads(done.stdout) for done in (by_server, by_bundle)]
    assert (by_server.returncode, by_bundle.returncode) == (1, 1), "two of the files are bad"
    for answer in answers:
        assert answer["model_id"] == Bundle.open(bundle_path).id
        names = [
            Path(result["file"]).relative_to(folder).as_posix() for result in answer["results"]
        ]
        assert names == ["a.jpg", "b.png", "below/d.bmp", "c.webp", "half.jpg", "text.jpg"]
        assert [len(result["scores"]) for result in answer["results"]] == [2, 2, 2, 2, 0, 0]
        assert answer["results"][-1]["error"]["reason"] == "NOT_AN_IMAGE"
        assert {result["model_id"] for result in answer["results"]} == {answer["model_id"]}
    for ours, theirs in zip(*(answer["results"] for answer in answers), strict=True):
        assert ours["error"] == theirs["error"]
        for score, other in zip(ours["scores"], theirs["scores"], strict=True):
            assert (score["index"], score["label"]) == (other["index"], other["label"])
            assert score["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_classify_prints_a_table_for_people(server, folder):
    done = irv2("classify", folder / "a.jpg", folder / "text.jpg", "--server", server.address)
    header, _, good, bad = done.stdout.splitlines()
    assert header.split() == ["file", "classes"]
    assert re.search(r"a\.jpg +class \d \d+\.\d\d %, class", good)
    assert "NOT_AN_IMAGE: begins with" in bad
    assert done.returncode == 1
    assert irv2("classify", folder / "a.jpg", "--server", server.address).returncode == 0


def test_on_a_terminal_a_bar_counts_the_files_and_is_gone_at_the_end(server, folder):
    command = [sys.executable, "-m", "irv2", "classify", str(folder), "--server", server.address]
    returncode, stdout, drawn = run_on_terminal(command)
    assert returncode == 1, "two of the six files are bad"
    assert re.findall(r"classify: .*? (\d)/6 \[", drawn) == list("0123456")
    assert re.search(r"\r +\r$", drawn)
    assert len(stdout.splitlines()) == 2 + 6


@pytest.mark.parametrize(
    "arguments",
    [
        ["IMAGE"],
        ["IMAGE", "--server", "127.0.0.1:1", "--bundle", "x"],
        ["IMAGE", "--server", "nonsense"],
        ["IMAGE", "--bundle", "/nowhere"],
        ["/nowhere.jpg", "--server", "127.0.0.1:1"],
        ["EMPTY_DIR", "--server", "127.0.0.1:1"],
    ],
)
def test_classify_says_wrong_usage_in_one_line(arguments, folder, tmp_path):
    places = {"IMAGE": folder / "a.jpg", "EMPTY_DIR": tmp_path}
    assert_one_error_line(irv2("classify", *(places.get(a, a) for a in arguments)), exit_code=2)


@pytest.mark.parametrize("num_files", [1, 8], ids=["one request", "several under way"])
@pytest.mark.parametrize("answers", [False, True], ids=["no answer", "asked to come back"])
def test_ctrl_c_ends_classify_though_the_server_does_not_answer(answers, num_files, folder):
    files = [str(folder / "a.jpg")] * num_files
    script = Scripted(*[Overloaded("server", "is full", 50.0)] * num_files, answers=answers)
    with scripted(script) as address:
        command = [sys.executable, "-m", "irv2", "classify", *files, "--server", address]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as popen:
            assert script.asked.wait(30)
            time.sleep(0.3)  # the others, or the refusals, are on their way
            popen.send_signal(signal.SIGINT)
            sent_at = time.monotonic()
            _, stderr = popen.communicate(timeout=30)
            assert time.monotonic() - sent_at < 10, "of the minute that a request is given"
    assert (popen.returncode, stderr.strip()) == (130, "error: stopped by Ctrl-C")


def test_no_server_is_said_in_one_line(folder):
    with socket.create_server(("127.0.0.1", 0)) as used:
        address = f"127.0.0.1:{used.getsockname()[1]}"
    done = irv2("classify", folder / "a.jpg", "--server", address)
    assert_one_error_line(done, exit_code=1)
    assert address in done.stderr
    assert "no server answers" in done.stderr


def test_a_client_refuses_what_is_no_image_source(server, tmp_path):
    with Client(server.address) as client:
        missing, *others = client.classify(
            [
                tmp_path / "none.jpg",
                np.zeros((4, 4), np.uint8),
                np.zeros((0, 4, 3), np.uint8),
                bytearray(picture(0)),
                None,
            ]
        )
        assert missing.error.reason is ImageReason.UNREADABLE
        assert {other.error.reason for other in others} == {ImageReason.BAD_PIXELS}
        assert "bytearray; expected a path, bytes or uint8 RGB" in str(others[2].error)
    with pytest.raises(UsageError):
        Client("nonsense")


def test_a_time_without_an_end_is_one_and_nan_is_none(server):
    with Client(server.address) as client:
        for timeout_s in (1e10, math.inf):
            [result] = client.classify([picture(0)], timeout_s=timeout_s)
            assert result.error is None
        with pytest.raises(UsageError, match="timeout_s: nan"):
            client.classify([picture(0)], timeout_s=math.nan)


def test_a_server_that_was_killed_is_a_clear_error(bundle_path, monkeypatch):
    monkeypatch.setattr("irv2.client.client.UNAVAILABLE_PAUSES_S", (0.1,))
    with serving(bundle_path) as process, Client(process.address) as client:
        client.classify([picture(0)])
        process.stop(signal.SIGKILL)
        with pytest.raises(NotServing, match="no server answers"):
            client.classify([picture(0)])


@pytest.mark.slow
def test_of_two_servers_one_that_hangs_is_noticed_and_the_other_answers(bundle_path, tmp_path):
    another = write_tiny_bundle(tmp_path / "another.bundle", seed=1)
    with (
        serving(bundle_path) as hanging,
        serving(another) as other,
        Client([hanging.address, other.address]) as client,
    ):
        answered_by: set[str] = set()
        while len(answered_by) < 2:  # connected to both
            answered_by.add(client.classify([picture(0)])[0].model_id)
        hanging.popen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        for _ in range(2):  # they take turns
            [result] = client.classify([picture(0)])
            assert result.model_id == Bundle.open(another).id
        assert time.monotonic() - began < 55, "of the minute that each request is given"


def test_health_answers_for_the_server_and_its_services(server):
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "irv2.v1.Classifier", "inference.GRPCInferenceService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_metrics_tell_what_happened(server):
    with Client(server.address) as client:
        client.classify([picture(0), b"hello"])
    status, text = get(server.http, "/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['irv2_requests_total{outcome="ok"}']) >= 1
    assert float(values['irv2_image_errors_total{reason="NOT_AN_IMAGE"}']) >= 1
    assert float(values["irv2_queue_images"]) == 0
    assert float(values["irv2_predicted_wait_seconds"]) > 0
    assert float(values["irv2_batch_images_count"]) >= 1
    for stage in ("queue", "preprocess", "inference", "total"):
        assert float(values[f'irv2_stage_seconds_count{{stage="{stage}"}}']) >= 1
    assert (get(server.http, "/healthz")[0], get(server.http, "/readyz")[0]) == (200, 200)


def test_sigterm_under_load_loses_no_request_and_exits_0(bundle_path):
    options = ("--grace-s", "1", "--http", LOOPBACK)
    with serving(bundle_path, *options) as process, Client(process.address) as client:
        leave, failures, num_answered = threading.Event(), [], []

        def keep_asking():
            while not leave.is_set():
                try:
                    num_answered.append(len(client.classify(list(map(picture, range(8))))))
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=keep_asking) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        process.popen.send_signal(signal.SIGTERM)
        # As a load balancer does: once health says so, send nothing more.
        with grpc.insecure_channel(process.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
            assert get(process.http, "/readyz")[0] == 503
            num_before = len(num_answered)
            time.sleep(0.3)
            assert len(num_answered) > num_before, "requests are answered through the grace period"
            leave.set()
            for thread in threads:
                thread.join()
        assert process.popen.wait(timeout=20) == 0
        assert not failures
        assert set(num_answered) == {8}


def test_an_open_request_is_finished_after_the_grace_period(bundle_path):
    images = [simplejpeg.encode_jpeg(picture(number, 2000, 2000)) for number in range(20)]
    options = ("--grace-s", "0", "--http", LOOPBACK)
    with serving(bundle_path, *options) as process, Client(process.address) as client:
        results = []
        asking = threading.Thread(target=lambda: results.extend(client.classify(images)))
        asking.start()
        while "irv2_queue_images 20.0" not in get(process.http, "/metrics")[1]:
            assert asking.is_alive()
        exit_code, stderr = process.stop(signal.SIGTERM)
        asking.join()
    assert (exit_code, "Traceback" in stderr) == (0, False)
    assert len(results) == 20
    assert all(result.scores for result in results)


def test_ctrl_c_stops_without_a_grace_period_and_exits_130(bundle_path):
    with serving(bundle_path, "--grace-s", "60") as process:
        exit_code, stderr = process.stop(signal.SIGINT)
        assert (exit_code, "Traceback" in stderr) == (130, False)


def test_a_second_signal_ends_the_grace_period(bundle_path):
    with serving(bundle_path, "--grace-s", "60") as process:
        process.popen.send_signal(signal.SIGTERM)
        assert "stopping" in read_line(process.popen.stderr)
        assert process.stop(signal.SIGTERM)[0] == 0


def connect_silently(address: str, ca: Path | None) -> socket.socket:
    """To the operators' port; with `ca` the handshake is made first."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)))
    if ca is None:
        return connection
    return ssl.create_default_context(cafile=ca).wrap_socket(connection, server_hostname=host)


@pytest.mark.parametrize("state", ["plain", "half a handshake", "encrypted"])
def test_a_silent_connection_to_the_operators_port_does_not_delay_the_stop(
    state, bundle_path, tmp_path
):
    issued = issue(tmp_path)
    options = () if state == "plain" else issued.server_options
    with serving(bundle_path, "--http", LOOPBACK, "--grace-s", "0", *options) as process:
        ca = issued.ca if state == "encrypted" else None
        with connect_silently(process.http, ca):
            time.sleep(0.2)  # the server has it
            sent_at = time.monotonic()
            exit_code, stderr = process.stop(signal.SIGTERM)
            assert (exit_code, "Traceback" in stderr) == (0, False), stderr
            assert time.monotonic() - sent_at < 4, "of 5 s that a request may take"


@pytest.mark.parametrize("option", ["--listen", "--http"])
def test_a_used_port_is_said_in_one_line(option, bundle_path, server):
    used = {"--listen": server.address, "--http": server.http}[option]
    arguments = {"--listen": LOOPBACK, "--http": LOOPBACK} | {option: used}
    done = irv2("serve", bundle_path, *(text for item in arguments.items() for text in item))
    assert_one_error_line(done, exit_code=1)
    assert os.strerror(errno.EADDRINUSE).lower() in done.stderr
    assert used in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--listen", "0.0.0.0:0"],
        ["--listen", LOOPBACK, "--http", "0.0.0.0:0"],
        ["--listen", "8500"],
        ["--listen", LOOPBACK, "--precision", "int8"],
        ["--listen", LOOPBACK, "--max-batch", "17"],
        ["--max-images", "0"],
        ["--listen", LOOPBACK, "--max-queue", "63"],
        ["--listen", LOOPBACK, "--http", "a..b:1", "--insecure"],
        ["--backend", "foo"],
        ["--threads", "1025"],
        ["--default-deadline-ms", "2147483648"],
        ["--max-connections", "2147483647"],
        ["--max-streams", "2147483648"],
        ["--max-image-bytes", "2147483648"],
        ["--max-image-pixels", "2147483648"],
        ["--max-connection-age-s", "2592000"],
        ["--max-connection-age-s", "nan"],
        ["--max-queue-delay-ms", "nan"],
        ["--grace-s", "inf"],
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(options, bundle_path):
    assert_one_error_line(irv2("serve", bundle_path, *options), exit_code=2)


def test_other_machines_are_served_only_when_asked_for(bundle_path):
    # A loopback address all the same: tests open no port to the world.
    with serving(bundle_path, "--insecure") as process:
        assert process.address.startswith("127.0.0.1:")


def flip_a_byte(bundle: Path) -> None:
    model = bundle / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)


def drop_manifest(bundle: Path) -> None:
    (bundle / "bundle.json").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, drop_manifest, shutil.rmtree])
def test_a_damaged_bundle_is_not_served(damage, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "damaged.bundle")
    damage(bundle)
    assert_one_error_line(irv2("serve", bundle, "--listen", LOOPBACK), exit_code=2)


@pytest.mark.parametrize("verdict", [None, "failed", "too_few_images"])
def test_a_model_that_did_not_pass_the_gate_is_not_served(verdict, tmp_path):
    bundle = write_tiny_bundle(tmp_path / "unverified.bundle", verdict=verdict)
    assert_one_error_line(irv2("serve", bundle, "--listen", LOOPBACK), exit_code=2)


@pytest.mark.parametrize(
    "module", ["irv2.serve.server", "irv2.client.client", "irv2.commands.classify"]
)
def test_server_and_client_start_where_torch_is_missing(module):
    program = f"import sys; sys.modules['torch'] = None; import {module}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_client_imports_no_engine_and_no_decoder():
    program = (
        "import sys, irv2.client.client; "
        "sys.exit(' '.join({'cv2', 'simplejpeg', 'onnxruntime', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_whole_server_runs_where_torch_and_scipy_are_missing(bundle_path, tmp_path):
    for module in ("torch", "scipy"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('not here')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "irv2", "serve", str(bundle_path), "--listen", LOOPBACK]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as popen:
        line = read_line(popen.stderr)
        popen.send_signal(signal.SIGINT)
        assert line.startswith("ready "), line + popen.stderr.read()
