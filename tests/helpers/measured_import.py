"""`irv2 import` in a process of its own, with its time and the memory it took."""

import subprocess
import sys
import time
from dataclasses import dataclass

PROGRAM = """
import runpy, sys
import torch
def peak():  # of this process alone; ru_maxrss would start with the parent's
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
start = peak()
try:
    runpy.run_module("irv2", run_name="__main__")
finally:
    print(peak() - start, file=sys.stderr)
"""


@dataclass(frozen=True)
class Measured:
    """`peak_bytes` is above a process that only imported torch."""

    stdout: str
    seconds: float
    peak_bytes: int


def run_import(*arguments: object) -> Measured:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "import", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Measured(done.stdout, time.perf_counter() - start, int(done.stderr.splitlines()[-1]))
