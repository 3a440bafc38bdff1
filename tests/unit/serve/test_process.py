import os
import subprocess
import sys

import pytest

from irv2.serve.process import wait_for_a_turn

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")

PROGRAM = """
import os, sys, threading
from irv2.serve.process import wait_for_a_turn
os.sched_setscheduler(0, int(sys.argv[1]), os.sched_param(0))
wait_for_a_turn()
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(0)))
thread.start()
thread.join()
"""


def policy_of_a_new_thread(first: int) -> int:
    """In a process that began with the policy `first`."""
    command = [sys.executable, "-c", PROGRAM, str(first)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_threads_of_a_process_with_the_default_policy_wait_for_their_turn():
    if os.sched_getscheduler(0) not in (os.SCHED_OTHER, os.SCHED_BATCH):
        pytest.skip("the tests run under a policy that not everybody may leave")
    assert policy_of_a_new_thread(os.SCHED_OTHER) == os.SCHED_BATCH


def test_a_policy_that_was_chosen_stays():
    assert policy_of_a_new_thread(os.SCHED_IDLE) == os.SCHED_IDLE


@pytest.mark.parametrize("call", ["sched_getscheduler", "sched_setscheduler"])
def test_a_sandbox_that_forbids_it_is_named_in_the_log(call, monkeypatch, caplog):
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_OTHER)
    monkeypatch.setattr(os, call, forbidden)
    wait_for_a_turn()
    assert "no_batch_scheduling" in caplog.text


RETURNING = """
import asyncio, os
from pathlib import Path
from irv2.serve.process import return_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

async def main():
    returning = asyncio.create_task(return_memory())
    await asyncio.sleep(0)
    before = resident_mb()
    pieces = [bytearray(5000) for _ in range(20_000)]
    kept = pieces[::100]
    del pieces
    print(resident_mb() - before)
    await asyncio.sleep(5)
    print(resident_mb() - before, len(kept))
    returning.cancel()

asyncio.run(main())
"""


def test_memory_that_was_freed_in_pieces_is_returned():
    """Two hundred pieces of 5 kB that live on keep 100 MB."""
    command = [sys.executable, "-c", RETURNING]
    freed, returned = subprocess.run(
        command, capture_output=True, check=True, text=True
    ).stdout.splitlines()
    assert float(freed) > 50, "it came back by itself, so this shows nothing"
    assert float(returned.split()[0]) < 20
