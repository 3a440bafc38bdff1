"""Kill a front end every second under load, then swap models: who fails, and what is kept.

On a slow machine it is less often, since all of them serve before one is killed.

    python tests/long/front_ends.py [--seconds 60] [--swaps 20] [--calls 0] [--front-ends 2]

Clients are bare gRPC stubs that never ask again. While front ends are killed, a call may fail with
UNAVAILABLE if it was at the one that was killed, and for no other reason. While models are swapped,
`--calls` at least, none may fail. At the end all places must be free, and the memory of all
processes (proportional set size) no more than 15 MB above what it was before. Prints the number of
calls and the 95 % interval of the share that failed; exit status 1 where one of that is not so.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import grpc
from serving_process import LOOPBACK, Process, get, replace_bundle, serving
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.measures.estimates import proportion
from irv2.v1.classifier_pb2 import ClassifyRequest, Image
from irv2.v1.classifier_pb2_grpc import ClassifierStub

NUM_CLIENTS = 12
MAX_GROWTH_MB = 15.0
SETTLE_S = 3.0  # until a replaced front end answers and freed memory is returned


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--front-ends", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "tiny.bundle")
        options = ("--front-ends", str(arguments.front_ends), "--http", LOOPBACK, "--log-requests")
        with serving(bundle, *options) as process:
            log = Log(process)
            with Load(process.address, log) as load:
                time.sleep(SETTLE_S)
                before_mb = memory_mb(process)
                faults = kill_every_second(process, load, log, arguments.seconds)
                load.settle()
                faults += swap(process, bundle, load, log, arguments.swaps, arguments.calls)
            time.sleep(SETTLE_S)
            text = get(process.http, "/metrics")[1]
            if "\nirv2_queue_images 0.0\n" not in text:
                faults.append("places are still taken")
            after_mb = memory_mb(process)
    print(f"memory {before_mb:.1f} -> {after_mb:.1f} MB")
    if after_mb > before_mb + MAX_GROWTH_MB:
        faults.append("memory has grown")
    print(*faults[:10], sep="\n")
    return int(bool(faults))


class Log:
    """What the server writes, and which front end answered the last call of each client."""

    def __init__(self, process: Process) -> None:
        self.lines: list[str] = []
        self.last: dict[int, tuple[int, int]] = {}  # the call's number, the front end's
        self._stderr = process.popen.stderr
        threading.Thread(target=self._read, daemon=True).start()

    def started(self) -> list[int]:
        """The processes of the front ends that have taken the place of others."""
        found = (re.match(r"front_end_started front_end=\d+ pid=(\d+)", row) for row in self.lines)
        return [int(each[1]) for each in found if each]

    def _read(self) -> None:
        for line in self._stderr:
            if found := re.search(r" id=(\d+)/(\d+) .* front_end=(\d+)$", line.rstrip()):
                client, call, number = map(int, found.groups())
                self.last[client] = call, number
            else:
                self.lines.append(line.rstrip())


class Load:
    """Clients that never stop asking, each over a connection of its own."""

    def __init__(self, address: str, log: Log) -> None:
        self.num_calls, self.failures = 0, []
        self._address, self._log, self._leave = address, log, threading.Event()
        numbers = range(NUM_CLIENTS)
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in numbers]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join()

    def settle(self) -> None:
        time.sleep(SETTLE_S)
        self.num_calls, self.failures = 0, []

    def _ask(self, number: int) -> None:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
        image = Image(encoded=jpeg(number))
        with grpc.insecure_channel(self._address, own) as channel:
            stub, i = ClassifierStub(channel), 0
            while not self._leave.is_set():
                request, i = ClassifyRequest(images=[image], id=f"{number}/{i}"), i + 1
                try:
                    # While there is no connection it waits: what fails was under way.
                    [result] = stub.Classify(request, timeout=30, wait_for_ready=True).results
                    assert result.scores
                except grpc.RpcError as error:
                    call, where = self._log.last.get(number, (0, 0))
                    known = where if call == i - 2 else None  # else it has a new connection
                    self.failures.append((time.monotonic(), number, known, error.code()))
                self.num_calls += 1


def kill_every_second(process: Process, load: Load, log: Log, seconds: float) -> list[str]:
    faults, kills, until = [], {}, time.monotonic() + seconds
    first = children(process)
    while time.monotonic() < until:
        serving = [*first, *log.started()]
        if not set(pids := children(process)) <= set(serving) or len(pids) < len(first):
            time.sleep(0.01)  # on a slow machine: one is still being replaced
            continue
        pid = random.choice(pids)
        kills[pid] = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        time.sleep(1)
    time.sleep(SETTLE_S)
    lost = [re.match(r"front_end_lost front_end=(\d+) pid=(\d+)", line) for line in log.lines]
    killed = [(int(found[1]), kills[int(found[2])]) for found in lost if found]
    for at, client, where, code in load.failures:
        was_there = any(where in (number, None) and 0 <= at - then < 3 for number, then in killed)
        if code is not grpc.StatusCode.UNAVAILABLE or not was_there:
            faults.append(f"client {client} of front end {where}: {code}")
    told = f"{len(killed)} killed, {load.num_calls} calls, {len(load.failures)} of them failed"
    print(f"{told}, {len(faults)} without a reason")
    return faults


def swap(
    process: Process, bundle: Path, load: Load, log: Log, num_swaps: int, num_calls: int
) -> list[str]:
    for seed in range(1, num_swaps + 1):
        model_id = replace_bundle(bundle, seed=seed)
        process.popen.send_signal(signal.SIGHUP)
        while not any(f"reloaded model={model_id[:12]} " in line for line in log.lines):
            time.sleep(0.01)
        while load.num_calls < num_calls * seed / num_swaps:
            time.sleep(0.1)
    share = proportion(len(load.failures), load.num_calls)
    print(f"{num_swaps} swaps: {load.num_calls} calls, {len(load.failures)} failed; {share}")
    return [f"client {client}: {code}" for _, client, _, code in load.failures]


def children(process: Process) -> list[int]:
    pid = process.popen.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory_mb(process: Process) -> float:
    total = 0.0
    for pid in (process.popen.pid, *children(process)):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(row.split()[1]) / 1024 for row in rollup.splitlines() if "Pss:" in row)
    return total


if __name__ == "__main__":
    sys.exit(main())
