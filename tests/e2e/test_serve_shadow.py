"""A second bundle on live pictures, until it takes over: what clients and operators see of it."""

import json
import signal
import subprocess
import sys
import threading

import pytest
from process_output import read_line
from serving_process import LOOPBACK, get, load_on, serving
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.client import Client

ENOUGH = 40  # pictures until it takes over
PICTURES = [jpeg(number) for number in range(60)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> tuple[Bundle, Bundle]:
    """Two that differ in few answers."""
    folder = tmp_path_factory.mktemp("bundles")
    first = write_tiny_bundle(folder / "first.bundle")
    second = write_tiny_bundle(folder / "second.bundle", mask=2.0)
    return Bundle.open(first), Bundle.open(second)


def irv2(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irv2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_it_is_compared_on_live_pictures_and_takes_over_without_a_lost_call(bundles):
    first, second = bundles
    pictures = [jpeg(number) for number in range(2 * ENOUGH)]
    expected = {each.id: each.classify(pictures) for each in bundles}
    options = ["--shadow", str(second.path), "--shadow-share", "100%", "--http", LOOPBACK]
    options += ["--promote-after", str(ENOUGH), "--max-disagreement", "50"]
    with serving(first.path, *options) as process, Client(process.address) as client:
        assert f" shadow={second.id[:12]} " in process.ready_line

        def answer(number: int) -> str:
            [result] = client.classify(pictures[number : number + 1], timeout_s=20)
            assert [score.label for score in result.scores] == [
                score.label for score in expected[result.model_id][number].scores
            ]
            return result.model_id

        assert {answer(number) for number in range(10)} == {first.id}
        promoted = threading.Event()
        reader = threading.Thread(target=wait_for_promotion, args=(process, promoted))
        reader.start()
        with load_on(process.address, num_threads=1) as failures:  # one picture, again and again
            for number in range(10, 2 * ENOUGH):
                answer(number)
            assert promoted.wait(20)
        reader.join()
        assert not failures
        assert answer(0) == second.id

        done = irv2("shadow", process.http, "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["verdict"], found["state"]) == (0, "passed", "promoted")
        assert (found["model_id"], found["shadow_id"]) == (first.id, second.id)
        assert found["compared"] == ENOUGH
        assert found["repeated"] > 0
        text = get(process.http, "/metrics")[1]
        assert f'model_id="{second.id}"' in next(
            line for line in text.splitlines() if line.startswith("irv2_model_info{")
        )
        assert 'irv2_reloads_total{outcome="ok"} 1.0' in text


def wait_for_promotion(process, promoted: threading.Event) -> None:
    while line := read_line(process.popen.stderr):
        if line.startswith("promoted bundle="):
            promoted.set()
            return


def test_the_verdict_says_what_was_compared_and_ends_with_its_own_status(bundles):
    first, second = bundles
    options = ["--shadow", str(second.path), "--shadow-share", "100%", "--http", LOOPBACK]
    with serving(first.path, *options) as process, Client(process.address) as client:
        answers = [[r.scores[0] for r in bundle.classify(PICTURES)] for bundle in bundles]
        changed = sum(one.label != other.label for one, other in zip(*answers, strict=True))
        assert 0 < changed < len(PICTURES)
        for picture in PICTURES:
            client.classify([picture])
        done = irv2("shadow", process.http)
        verdict, models, meaning = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (3, "")
        assert verdict.startswith(
            f"shadow too few images: {changed} of {len(PICTURES)} answers differ from the served "
            "model's; disagreement below "
        )
        assert f"served {first.id[:12]}, shadow {second.id[:12]} (model.onnx, fp32" in models
        assert meaning.startswith("agreement on live pictures without labels, not accuracy")
        wrong_port = irv2("shadow", process.address)
        assert wrong_port.returncode == 1
        assert "expected /metrics of irv2-serve, on the port of --http" in wrong_port.stderr
        assert wrong_port.stderr.count("\n") == 1
        assert process.stop(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--promote-after", "300"], "--max-disagreement: without --shadow; expected the second"),
        (["--shadow", "{}", "--shadow-share", "5"], "'5' is not a percentage such as 15%"),
        (["--shadow", "{}", "--promote-after", "298"], "--promote-after: 298; expected at least 2"),
    ],
)
def test_options_that_cannot_be_kept_are_one_line(bundles, options, message):
    first, second = bundles
    given = [str(second.path) if option == "{}" else option for option in options]
    done = irv2("serve", str(first.path), "--listen", LOOPBACK, *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
