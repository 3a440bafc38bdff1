"""Requests in flight: full ones at full speed, what has come where images come slowly."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from scripted_server import Scripted, served

from irv2.client.in_flight import InFlight
from irv2.results import Result
from irv2.v1.classifier_pb2 import Limits

LIMITS = Limits(max_message_bytes=2**20, max_images=8)


class Sender:
    """Answers each request, once it may go on, and remembers it."""

    def __init__(self) -> None:
        self.requests: list[list[bytes]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, request: list[bytes]) -> list[Result]:
        self.requests.append(request)
        self.go_on.wait(20)
        return [Result(model_id=image.decode()) for image in request]

    def answers(self, images, limits: Limits = LIMITS, window: int = 2) -> Iterator[Result]:
        return InFlight(images, limits, self, window).results()


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def ids(results) -> list[bytes]:
    return [result.model_id.encode() for result in results]


def wait_for_threads() -> None:
    until = time.monotonic() + 20
    while any(t.name.startswith("irv2-client") for t in threading.enumerate()):
        assert time.monotonic() < until, "threads are left"
        time.sleep(0.005)


@pytest.mark.parametrize("make", [list, iter], ids=["list", "generator"])
def test_images_that_are_all_there_fill_the_requests(make):
    send = Sender()
    assert ids(send.answers(make(numbered(50)))) == numbered(50)
    assert sorted(map(len, send.requests)) == [2, *[8] * 6]


def test_bytes_fill_a_request_too():
    send = Sender()
    limits = Limits(max_message_bytes=3 * 1000, max_images=8)
    images = [b"x" * 800] * 9  # with what protobuf adds, three in a message
    assert ids(send.answers(iter(images), limits)) == images
    assert list(map(len, send.requests)) == [3, 3, 3]


def test_an_image_is_answered_before_the_next_one_comes():
    """As from a camera: each picture is taken only when the one before is answered."""
    send, answered = Sender(), threading.Semaphore()

    def camera():
        for image in numbered(20):
            assert answered.acquire(timeout=20)
            yield image

    for image, result in zip(numbered(20), send.answers(camera()), strict=True):
        assert ids([result]) == [image]
        answered.release()
    assert send.requests == [[image] for image in numbered(20)]


def test_images_that_come_while_all_requests_are_in_flight_share_the_next():
    send, come = Sender(), threading.Event()
    send.go_on.clear()

    def camera():
        for i, image in enumerate(numbered(7)):
            while len(send.requests) < min(i, 2):  # the first two are sent one by one
                time.sleep(0.001)
            yield image
        come.set()

    results = send.answers(camera())
    first = threading.Thread(target=lambda: next(results))
    first.start()
    assert come.wait(20)
    send.go_on.set()
    first.join()
    assert ids(results) == numbered(7)[1:]
    assert send.requests == [[b"0"], [b"1"], numbered(7)[2:]]


def test_what_the_images_raise_comes_after_the_answers_of_those_before():
    def broken():
        yield from numbered(11)
        raise KeyError("the camera fell")

    answered = []
    with pytest.raises(KeyError, match="the camera fell"):
        answered.extend(Sender().answers(broken()))
    assert ids(answered) == numbered(11)
    wait_for_threads()


def test_what_sending_raises_ends_the_rest():
    read = []

    def images():
        for image in numbered(10_000):
            read.append(image)
            yield image

    def fail(request):
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        list(InFlight(images(), LIMITS, fail, 2).results())
    wait_for_threads()
    assert len(read) < 10_000


def test_a_reader_who_has_enough_ends_it():
    def endless():
        while True:
            yield b"0"

    results = Sender().answers(endless())
    assert ids([next(results)]) == [b"0"]
    results.close()
    wait_for_threads()


def test_no_more_is_read_ahead_than_is_kept_in_flight():
    read, send = [], Sender()

    def endless():
        while True:
            read.append(b"0")
            yield b"0"

    results = send.answers(endless())
    next(results)
    time.sleep(0.1)
    results.close()
    assert len(read) <= 8 * (2 * 2 + 3)  # twice the window; one answered, one open, one image over


@pytest.mark.parametrize("pause_s", [0.001, 1000])
def test_a_program_may_end_while_images_are_still_to_come(pause_s):
    program = f"""
import sys, time
from irv2.client import Client
def camera():
    while True:
        yield b"image"
        time.sleep({pause_s})
results = Client(sys.argv[1]).iter_classify(camera())
print(next(results).model_id)
"""
    with served(Scripted()) as address:
        command = [sys.executable, "-c", program, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "scripted\n", "")
