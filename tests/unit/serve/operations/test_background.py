"""Lines for readers that are slow, stuck or gone, over real pipes and a full disk."""

import os
import time
from pathlib import Path

import pytest

from irv2.serve.operations.background import (
    LAST_LINES_S,
    MAX_WAITING,
    BackgroundStream,
    print_in_background,
)


@pytest.fixture
def pipe():
    """A pipe's ends; those that a test has not closed are closed for it."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def stream_to(descriptor: int) -> BackgroundStream:
    return BackgroundStream(descriptor, "lost {}\n".format)


def read_all(descriptor: int) -> list[str]:
    with os.fdopen(os.dup(descriptor)) as file:
        return file.read().splitlines()


def fill(descriptor: int) -> int:
    """Write to a pipe until it is full; returns the number of bytes."""
    os.set_blocking(descriptor, False)
    num = 0
    try:
        while True:
            num += os.write(descriptor, bytes(4096))
    except BlockingIOError:
        os.set_blocking(descriptor, True)
        return num


def test_what_is_written_arrives_in_order(pipe):
    reader, writer = pipe
    stream = stream_to(writer)
    print("one", "two", file=stream)
    stream.write("broken \udcff\n")
    stream.finish()
    os.close(writer)
    assert read_all(reader) == ["one two", r"broken \udcff"]
    assert stream.num_lost == 0


def test_a_stuck_reader_costs_lines_and_is_told_how_many_when_it_is_back(pipe):
    reader, writer = pipe
    num_filled, stream = fill(writer), stream_to(writer)
    for number in range(2 * MAX_WAITING):
        stream.write(f"{number}\n")
    num_lost = stream.num_lost
    assert MAX_WAITING - 1 <= num_lost <= MAX_WAITING, "one may be in the thread's hands"
    while num_filled:
        num_filled -= len(os.read(reader, num_filled))
    stream.finish()
    os.close(writer)
    *numbers, last = read_all(reader)
    assert last == f"lost {num_lost}"
    assert len(numbers) == 2 * MAX_WAITING - num_lost
    assert numbers[:MAX_WAITING] == [*map(str, range(MAX_WAITING))]


def test_the_end_is_not_late_for_a_stuck_reader(pipe):
    fill(pipe[1])
    stream = stream_to(pipe[1])
    stream.write("never read\n")
    began = time.monotonic()
    stream.finish()
    assert LAST_LINES_S / 2 < time.monotonic() - began < LAST_LINES_S + 2


@pytest.mark.parametrize("fault", ["full disk", "no reader"])
def test_lines_that_cannot_be_written_are_counted(pipe, fault):
    reader, writer = pipe
    if fault == "full disk":
        writer = os.open("/dev/full", os.O_WRONLY)
    os.close(reader)
    stream = stream_to(writer)
    for _ in range(3):
        stream.write("lost\n")
    stream.finish()
    assert stream.num_lost == 3


def test_a_descriptor_that_others_made_non_blocking_gets_everything(pipe):
    reader, writer = pipe
    stream = stream_to(writer)
    os.set_blocking(writer, False)
    text = "x" * 300_000  # more than a pipe holds
    stream.write(f"{text}\n")
    received = b""
    while len(received) <= len(text):
        received += os.read(reader, 65_536)
    assert received.decode() == f"{text}\n"
    stream.finish()


def test_bytes_are_refused_as_by_any_text_stream(pipe):
    reader, writer = pipe
    stream = stream_to(writer)
    with pytest.raises((TypeError, AttributeError)):  # click tries it
        stream.write(b"")
    stream.write("goes on\n")
    stream.finish()
    os.close(writer)
    assert read_all(reader) == ["goes on"]


def test_stdout_that_cannot_be_written_is_told(monkeypatch):
    errors = []
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        print_in_background("hello", errors.append)
        deadline = time.monotonic() + 5
        while not errors and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "No space left" in str(errors)
