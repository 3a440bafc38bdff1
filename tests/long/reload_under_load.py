"""Swap a server's model again and again under load: no failed request, no memory kept.

    python tests/long/reload_under_load.py [BUNDLE] [--swaps 20]

Without BUNDLE a tiny one is made. Prints one line per swap; exit status 1 where a request failed,
or where the memory of the second half of the swaps lies more than 10 MB above that of the first
half or of the start. Memory is the proportional set size after each swap, when no request has been
sent for two seconds: what batches need comes and goes.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from process_output import read_line
from serving_process import serving
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.client import Client

NUM_CLIENTS = 3
MAX_GROWTH_MB = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--swaps", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or write_tiny_bundle(Path(folder) / "tiny.bundle")
        return swap_under_load(bundle, arguments.swaps)


def swap_under_load(bundle: Path, num_swaps: int) -> int:
    leave, wanted, answered, failures = threading.Event(), threading.Event(), [], []

    def keep_asking(number: int) -> None:
        with Client(process.address) as client:
            while not leave.is_set():
                wanted.wait()
                try:
                    (result,) = client.classify([jpeg(number)], timeout_s=30)
                    (answered if result.scores else failures).append(result)
                except Exception as error:
                    failures.append(error)

    with serving(bundle) as process:
        threads = [threading.Thread(target=keep_asking, args=(n,)) for n in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        wanted.set()
        time.sleep(2)
        memory_mb = [memory_in_a_lull(process.popen.pid, wanted)]
        print(f"start: {memory_mb[0]:.1f} MB")
        for number in range(1, num_swaps + 1):
            os.kill(process.popen.pid, signal.SIGHUP)
            for beginning in ("reloaded ", "closed "):
                line = read_line(process.popen.stderr)
                assert line.startswith(beginning), line
            memory_mb.append(memory_in_a_lull(process.popen.pid, wanted))
            time.sleep(0.5)
            print(f"swap {number}: {memory_mb[-1]:.1f} MB, {len(answered)} answered", flush=True)
        leave.set()
        for thread in threads:
            thread.join()
    half = len(memory_mb) // 2
    early, late = statistics.median(memory_mb[1:half]), statistics.median(memory_mb[half:])
    print(
        f"{len(answered)} answered, {len(failures)} failed; "
        f"memory {memory_mb[0]:.1f}, {early:.1f} -> {late:.1f} MB"
    )
    print(*failures[:3], sep="\n")
    return int(bool(failures) or late - min(early, memory_mb[0]) > MAX_GROWTH_MB)


def memory_in_a_lull(pid: int, wanted: threading.Event) -> float:
    """Resident memory in MB, shared pages by their share, while clients keep quiet."""
    wanted.clear()
    time.sleep(2)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    wanted.set()
    return next(int(line.split()[1]) / 1024 for line in rollup.splitlines() if "Pss:" in line)


if __name__ == "__main__":
    sys.exit(main())
