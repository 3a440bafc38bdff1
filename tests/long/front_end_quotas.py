"""How answers grow with front ends: each may use a quarter of a core, so two cores hold four.

    python tests/long/front_end_quotas.py [--rounds 7] [--seconds 4]

Servers of a tiny network, with 1 (the one process), 2 and 4 front ends, take turns; 64 clients on
connections of their own ask for one 500x375 JPEG at a time. Prints the requests/s and processor
time of each, and ratios by pairs with 95 % intervals; 2 again is the A/A test. Needs control
groups that can be made here. Exit status 1 where 4 answer less than 3.6 times what 1 does, 2 where
the A/A test failed.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from cgroups import limited_time

from irv2.bench.rounds import machine, machine_lock, run_rounds
from irv2.serve.bench.clients import ClosedLoop, GrpcTarget, Window
from irv2.serve.bench.site import Served, make_pictures, our_server, served, write_tiny_bundle

COUNTS, QUOTA, NUM_CLIENTS, BAR = (1, 2, 4), 0.25, 64, 3.6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        stack.enter_context(machine_lock())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle, pictures = write_tiny_bundle(folder / "tiny", "torch7-bicubic"), make_pictures()
        windows: dict[str, list[Window]] = {}
        cases = {}
        for count in COUNTS:
            command = our_server(bundle, "--front-ends", str(count))
            process = stack.enter_context(served(command))
            for pid in front_ends(process, count):
                group = stack.enter_context(limited_time(QUOTA))
                (group / "cgroup.procs").write_text(str(pid))
            loop = ClosedLoop(GrpcTarget(process.address, pictures), NUM_CLIENTS, process.cpu_s)
            found = windows.setdefault(str(count), [])
            cases[str(count)] = partial(measure, loop, found, arguments.seconds)
        rounds = run_rounds(cases, arguments.rounds, aa="2", title="quotas")
    four = rounds.ratio("4", "1")
    result = {
        "machine": machine(),
        "requests_per_s": {name: round(rounds.median(name), 1) for name in cases},
        "server_cpu_ms": {name: cpu_ms(each) for name, each in windows.items()},
        "2 / 1": rounds.ratio("2", "1").to_json(),
        "4 / 1": four.to_json(),
        "A/A": rounds.aa("2").to_json(),
    }
    print(json.dumps(result, indent=2))
    return 2 if rounds.is_void("2") else int(four.value < BAR)


def front_ends(process: Served, count: int) -> list[int]:
    """The processes that answer: of one front end, the server itself."""
    if count == 1:
        return [process.pid]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == count
    return [int(pid) for pid in children]


def measure(loop: ClosedLoop, found: list[Window], seconds: float) -> float:
    window = asyncio.run(loop.window(seconds, settle_s=1.0))
    found.append(window)
    return window.rate


def cpu_ms(windows: list[Window]) -> float:
    used = sum(window.server_cpu_s for window in windows)
    return round(used / sum(len(window.calls) for window in windows) * 1e3, 2)


if __name__ == "__main__":
    sys.exit(main())
