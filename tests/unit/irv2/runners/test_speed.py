"""Images per second, measured on all streams of each runner in turn."""

import time

import numpy as np
import pytest

from irv2.runners import speed
from irv2.runners.base import CPU_MAX_BATCH, Runner


class Sleeping(Runner):
    """Takes so long for every batch, on as many streams."""

    backend, image_size, num_classes, max_batch = "sleeping-cpu", 2, 3, 64

    def __init__(self, seconds: float, num_streams: int = 1) -> None:
        self.seconds, self.num_streams = seconds, num_streams
        self.sizes: list[int] = []

    def run(self, images):
        self.sizes.append(len(images))
        time.sleep(self.seconds)
        return np.zeros((len(images), 3), np.float32)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(speed, "ROUND_S", 0.03)


def test_all_streams_count_and_batches_are_a_servers():
    one, two = Sleeping(0.01), Sleeping(0.01, num_streams=2)
    rates = speed.images_per_s([one, two])
    assert rates[0] <= CPU_MAX_BATCH / 0.01
    assert rates[1] > 1.3 * rates[0]
    assert {*one.sizes, *two.sizes} == {CPU_MAX_BATCH}


def test_a_round_ends_after_some_batches_or_some_time_but_runs_one_at_least():
    quick, slow = Sleeping(0.0), Sleeping(0.05)
    speed.images_per_s([quick, slow])
    rounds = speed.ROUNDS + 1  # one to warm up
    assert len(quick.sizes) <= speed.MAX_BATCHES * rounds
    assert len(slow.sizes) == rounds


def test_the_rounds_are_shown(monkeypatch, caplog):
    monkeypatch.setattr("irv2.system.progress.LINE_EVERY_S", 0)
    with caplog.at_level("INFO"):
        speed.images_per_s([Sleeping(0.001)])
    assert [line.partition(" rounds,")[0] for line in caplog.messages] == [
        f"time the engines: {done}/4" for done in range(1, 5)
    ]
