import signal

import pytest

from irv2.system.stop import Terminated
from irv2.train.signals import Interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_until_the_work_can_stop_and_a_second_one_does_not(number):
    with Interrupt() as interrupt:
        signal.raise_signal(number)
        assert interrupt.received == number
        with pytest.raises(Terminated) as raised:
            signal.raise_signal(number)
    assert raised.value.number == number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number):
    """As of a job that a shell put into the background, or under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(number)
            assert not interrupt.received
    finally:
        signal.signal(number, before)
