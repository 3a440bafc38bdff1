"""Work in a thread ends when the program is told to end."""

import os
import signal
import time
from threading import Event, Timer

import pytest

from irv2.convert.onnx.interruptible import in_thread


def test_a_signal_ends_the_exporters_thread_though_it_swallows_one(recwarn):
    ended = Event()

    def work() -> None:
        Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                try:
                    time.sleep(0.01)
                except BaseException:  # as lazy imports do
                    break
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        in_thread(work)
    assert ended.is_set()
    assert not recwarn.list  # of an unhandled exception in a thread


def test_what_the_exporter_raises_or_returns_is_what_the_caller_gets():
    assert in_thread(lambda: "model") == "model"
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 // 0)
