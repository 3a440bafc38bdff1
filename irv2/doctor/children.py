"""Short-lived processes that try what may crash or hang, all at once, until a common deadline."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import NamedTuple

from irv2.doctor.probe import Answer
from irv2.system.cgroups import num_killed, why_killed

Command = tuple[str, ...]  # a task of probe.py, and what it is about
_CAUSES = {
    signal.SIGBUS: "as with a file that was cut off",
    signal.SIGILL: "as with code for another processor",
}


class _Child(NamedTuple):
    command: Command
    process: "subprocess.Popen[bytes]"


def run_children(commands: list[Command], timeout_s: float) -> dict[Command, dict[str, Answer]]:
    """Run each command, and return its answers by name: an `error` where it failed.

    `is_late` tells what only did not answer in time, which a busy machine may be the reason for.
    They import from where this process does, and leave no bytecode behind.
    """
    deadline, killed = time.monotonic() + timeout_s, num_killed()
    with ExitStack() as started:
        children = [started.enter_context(_started(command)) for command in commands]
        # Side by side, since one that hangs must not hold up the pipes of the others.
        with ThreadPoolExecutor(len(children)) as pool:
            answers = pool.map(partial(_answers, deadline, timeout_s, killed), children)
            return dict(zip(commands, answers, strict=True))


@contextmanager
def _started(command: Command) -> Iterator[_Child]:
    places = [os.path.abspath(place) for place in sys.path]  # noqa: PTH100 (not to follow links)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "irv2.doctor.probe", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # to be ended with all that it starts
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_CACHE_DISABLE": "1",  # in the user's home
            "MATPLOTLIBRC": os.devnull,  # else it makes a folder there when it is imported
        },
    )
    try:
        yield _Child(command, process)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(deadline: float, timeout_s: float, killed: int, child: _Child) -> dict[str, Answer]:
    command, process = child
    is_late = False
    try:
        out, log = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        is_late = True
        _end(process)
        out, log = process.communicate()
    lines = [json.loads(line) for line in out.splitlines()]
    found: dict[str, Answer] = {line["name"]: line for line in lines if "name" in line}
    tried = [line["trying"] for line in lines if "trying" in line]
    unanswered = [name for name in command[1:] if name not in found]
    if unanswered:
        at = tried[-1] if tried and tried[-1] in unanswered else unanswered[0]
        reason = (
            f"no answer within {timeout_s:g} s: it hangs, or this machine is busy"
            if is_late
            else _why_ended(process.returncode, log, killed)
        )
        untried = {"error": f"not tried, since {at} came first", "is_late": is_late}
        found |= dict.fromkeys(unanswered, untried)
        found[at] = {"error": reason, "is_late": is_late}
    return found


def _why_ended(status: int, log: bytes, killed: int) -> str:
    """Name the signal that ended it, or the last line that it wrote."""
    if status < 0:
        number = signal.Signals(-status)
        how = _CAUSES.get(number) or why_killed(killed)
        return f"it ended its process with {number.name}" + (f", {how}" if how else "")
    lines = log.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {status}")
