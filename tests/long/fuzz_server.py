"""100,000 malformed messages, images and connections: no crash, no leak, the right code each.

    python tests/long/fuzz_server.py [--inputs 100000] [--seed 0]

Against a real server with a tiny network; some 2,000 inputs a second on two cores. Beside a hundred
inputs come a connection that speaks no HTTP/2 and a request to the operators' port. Prints the
rate, outcomes and memory on the way; exit status 1 where an answer was wrong, the server died or
logged a traceback, or its memory grew by more than 50 MB, or its open files by more than 10, from
the first tenth to the end.
"""

import argparse
import asyncio
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from fuzzing import (
    Inputs,
    Report,
    batches,
    fuzz,
    fuzz_connections,
    fuzz_http,
    memory_mb,
    settled_open_files,
)
from serving_process import LOOPBACK, serving
from tiny_bundle import SIDE, write_tiny_bundle

MAX_GROWTH_MB, MAX_MORE_FILES = 50.0, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "tiny.bundle")
        with serving(bundle, "--http", LOOPBACK) as process:
            return run(process, arguments.inputs, arguments.seed)


def run(process, num_inputs: int, seed: int) -> int:
    log: list[str] = []
    threading.Thread(target=lambda: log.extend(process.popen.stderr), daemon=True).start()
    pid, total, inputs, began = process.popen.pid, Report(), Inputs(seed, SIDE), time.monotonic()
    at_first = None
    for numbers in batches(num_inputs, max(1, num_inputs // 10)):
        report = asyncio.run(fuzz(process.address, inputs, numbers))
        fuzz_connections(process.address, seed + numbers.start, len(numbers) // 100)
        total.outcomes += report.outcomes
        total.wrong += report.wrong
        total.wrong += fuzz_http(process.http, seed + numbers.start, len(numbers) // 100)
        now = (memory_mb(pid), settled_open_files(pid, at_first[1] if at_first else 0, 2.0))
        at_first = at_first or now
        rate = total.num_inputs / (time.monotonic() - began)
        print(f"{total.num_inputs} inputs, {rate:.0f}/s, {now[0]:.1f} MB, {now[1]} files open")
    tracebacks = sum("Traceback" in line for line in log)
    print(dict(total.outcomes.most_common()))
    print(f"{len(total.wrong)} wrong, {tracebacks} tracebacks", *total.wrong[:20], sep="\n")
    alive = process.popen.poll() is None
    grown = now[0] - at_first[0] > MAX_GROWTH_MB or now[1] - at_first[1] > MAX_MORE_FILES
    return int(bool(total.wrong) or bool(tracebacks) or not alive or grown)


if __name__ == "__main__":
    sys.exit(main())
