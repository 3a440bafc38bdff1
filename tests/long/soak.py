"""Calls that are refused or given up, of every kind, between good ones: what do they cost?

    python tests/long/soak.py [--calls 10000] [--memory-mb 1024] [--kinds]

A real server with a tiny network, in a cgroup of that much memory where one can be made. One call
in twenty is as large as the server allows, the others hold a megabyte. A good call follows each
one; /healthz is asked all the time by another process. Exit status 1 where a good call got no
answer, any call another code than it must, the memory grew by more than 50 MB from the first tenth
to the end, or /healthz took more than 200 ms.

--kinds prints a table instead: each kind alone, six calls as large as the server allows, and the
memory once the server has returned what it can.
"""

import argparse
import asyncio
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import grpc
from cgroups import limited_memory
from fuzzing import CLASSIFY, memory_mb
from refused_calls import KINDS, LARGEST, MB, OPTIONS, Caller
from serving_process import LOOPBACK, serving
from serving_site import request
from tiny_bundle import write_tiny_bundle

from irv2.serve.process import LOOK_EVERY_S
from irv2.v1.classifier_pb2 import ClassifyResponse

MAX_GROWTH_MB, MAX_HEALTHZ_MS, ONE_IN, NUM_OF_KIND = 50.0, 200.0, 20, 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--kinds", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end what it has started
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "tiny.bundle")
        if arguments.kinds:
            return table_of_kinds(bundle)
        with (
            serving(bundle, "--http", LOOPBACK) as process,
            limited(process.popen.pid, arguments.memory_mb),
        ):
            return asyncio.run(soak(process, arguments.calls))


@contextmanager
def limited(pid: int, most_mb: int):
    """Put a process into a cgroup of its own, or say why it can't be."""
    with ExitStack() as stack:
        try:
            group = stack.enter_context(limited_memory(most_mb * 2**20))
            (group / "cgroup.procs").write_text(str(pid))
            print(f"memory is limited to {most_mb} MiB")
        except OSError as error:
            print(f"memory is not limited: {error}")
        yield


def ask_healthz(address: str, pid: int, worst_ms, peak_mb) -> None:
    """Note the slowest answer and the most memory, until ended."""
    while True:
        began = time.monotonic()
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=60) as response:
            response.read()
        worst_ms.value = max(worst_ms.value, 1e3 * (time.monotonic() - began))
        peak_mb.value = max(peak_mb.value, memory_mb(pid))
        time.sleep(0.005)


@contextmanager
def watched(process):
    """The slowest /healthz and the most memory so far, from a process beside this one."""
    spawn = multiprocessing.get_context("spawn")
    worst_ms, peak_mb = spawn.Value("d", 0.0), spawn.Value("d", 0.0)
    asking = spawn.Process(
        target=ask_healthz, args=(process.http, process.popen.pid, worst_ms, peak_mb), daemon=True
    )
    asking.start()
    while not peak_mb.value:
        time.sleep(0.05)
    try:
        yield worst_ms, peak_mb
    finally:
        asking.kill()
        asking.join()


async def soak(process, num_calls: int) -> int:
    rng, wrong, at_first = random.Random(0), [], 0.0
    names, pid, began = list(KINDS), process.popen.pid, time.monotonic()
    good = request(1).SerializeToString()
    with watched(process) as (worst_ms, peak_mb):
        async with grpc.aio.insecure_channel(process.address, OPTIONS) as channel:
            caller, classify = Caller(channel, process.address), channel.unary_unary(CLASSIFY)
            for number in range(1, num_calls + 1):
                name = names[number % len(names)]
                ask, expected = KINDS[name]
                got = await ask(caller, LARGEST if rng.randrange(ONE_IN) == 0 else MB)
                if not got <= expected:
                    wrong.append(f"{name}: {got}, expected {expected}")
                answer = ClassifyResponse.FromString(await classify(good, timeout=10))
                assert answer.results[0].scores
                if number % max(1, num_calls // 10) == 0:
                    at_first = at_first or memory_mb(pid)
                    rate = number / (time.monotonic() - began)
                    print(
                        f"{number} calls, {rate:.0f}/s, {memory_mb(pid):.0f} MB, "
                        f"at most {peak_mb.value:.0f} MB, /healthz at most {worst_ms.value:.0f} ms",
                        flush=True,
                    )
    growth_mb = memory_mb(pid) - at_first
    print(f"{len(wrong)} wrong, {growth_mb:.0f} MB more", *sorted(set(wrong)), sep="\n")
    return int(bool(wrong) or growth_mb > MAX_GROWTH_MB or worst_ms.value > MAX_HEALTHZ_MS)


def table_of_kinds(bundle: Path) -> int:
    print("| call | ends | MB before | after | at most | /healthz, ms |")
    print("|---|---|---|---|---|---|")
    for name, (ask, _) in KINDS.items():
        with serving(bundle, "--http", LOOPBACK) as process:
            with watched(process) as (worst_ms, peak_mb):
                before, codes = memory_mb(process.popen.pid), asyncio.run(several(process, ask))
                time.sleep(LOOK_EVERY_S + 0.5)
                after = memory_mb(process.popen.pid)
            print(
                f"| {name} | {' '.join(sorted(codes))} | {before:.0f} | {after:.0f} "
                f"| {peak_mb.value:.0f} | {worst_ms.value:.0f} |",
                flush=True,
            )
    return 0


async def several(process, ask) -> set[str]:
    async with grpc.aio.insecure_channel(process.address, OPTIONS) as channel:
        caller = Caller(channel, process.address)
        return set.union(*[await ask(caller, LARGEST) for _ in range(NUM_OF_KIND)])


if __name__ == "__main__":
    sys.exit(main())
