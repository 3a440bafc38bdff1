"""Ctrl-C at many moments of every program: status 130, one line, nothing left.

    python tests/long/interrupts.py [--moments 500] [--seed 0] [--kill WHOM] [PROGRAM ...]

Each program is run to its end once, to learn how long it takes; then it is stopped at random
moments of that time, by a SIGINT to its process group, as a terminal sends it. A program that is
done before keeps its own status. Moments at which Python itself has not yet begun the program
can't be mended by it, and are counted apart.

With --kill, an export's processes get SIGKILL instead, as from a kernel that is out of memory. A
killed child is told of by its parent, which leaves nothing (status 1). A killed parent leaves no
process, but perhaps its hidden folder, which the next export removes. A bundle that was published
by then stays, whoever was stopped; the line after the error says so.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from process_output import read_line
from project import ROOT

PATIENCE_S = 120
FINE = {"stopped", "done", "before the program", "killed", "told"}
SMALL = "--width=0.03 --blocks 1 1 1 --image-size=75 --batch-size=8 --bn-group=4 --workers=1"
BEFORE = ROOT / "tests" / "data" / "before_rooms"

# {0} is a folder of the moment's own; the inputs are those of tests/data/before_rooms.
PROGRAMS = {
    "help": "--help",
    "sample": "data sample --out {0}/sample",
    "shard": "data shard {data} {0}/shards",
    "eval": "eval {run}/best.pt --data {data} --json",
    "features": "features {data}/val --model {run}/best.pt --out {0}/features.npz",
    "export": "export {run}/best.pt --data {data} --precision fp32,int8 --tolerance-top1 30 "
    "--tolerance-top5 30 --max-batch 4 --out {0}/b.bundle",
    "verify": "verify {0}/old.bundle --data {data}",
    "inspect": "inspect {bundle}",
    "diff": "diff {bundle}:model.onnx {bundle}:model.int8-cpu.onnx --data {data}",
    "classify": "classify {data}/val --bundle {bundle}",
    "plot": "plot {run} -o {0}/curves.png",
    "train": f"train --setting=2 {SMALL} --epochs=1 --device=cpu --data {{data}} --out {{0}}/run",
    "serve": "serve {bundle} --listen 127.0.0.1:0",
}
MAY_STAY = {"run", "old.bundle"}  # a run's folder is there to be resumed


@dataclass(frozen=True, slots=True)
class End:
    """How a program ended."""

    status: int
    stderr: str
    left: list[str]
    kill: str | None = None
    child_lives: bool = False

    @property
    def verdict(self) -> str:
        """One of FINE is as it should be."""
        if self.child_lives:
            return "left a process"
        if self.status == -signal.SIGKILL and self.kill in ("parent", "both"):
            is_known = all(name.lstrip(".").startswith("b.bundle") for name in self.left)
            return "killed" if is_known else f"left {self.left}"
        is_told = self.stderr.endswith("b.bundle: was published before that, and is whole\n")
        if self.left and not (is_told and self.left == ["b.bundle"]):
            return f"left {self.left[0]}"
        if "Traceback" in self.stderr or "Fatal Python error" in self.stderr:
            began = "irv2/cli" in self.stderr or "irv2/system" in self.stderr
            return "traceback" if began else "before the program"
        if self.status == -signal.SIGINT and not self.stderr.strip():
            return "before the program"
        if self.status == 0:
            return "done"
        if self.status == 1 and self.kill == "child":
            is_one = self.stderr.count("error: memory: irv2 export was ended by SIGKILL") == 1
            return "told" if is_one and self.stderr.count("error: ") == 1 else "not one line"
        if self.status != 130:
            return f"status {self.status}"
        # A server says nothing when it stops.
        if "Exception ignored" in self.stderr or self.stderr.count("error: ") > 1:
            return "more than one line"
        return "stopped"


def child_of(pid: int) -> int | None:
    """The child in which an export works, if there is one yet."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return None
    return int(children[0]) if children else None


def lives(pid: int | None) -> bool:
    """Whether such a process is still there after some seconds, which its end may take."""
    until = time.monotonic() + 10
    while pid and is_running(pid):
        if time.monotonic() > until:
            return True
        time.sleep(0.01)
    return False


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended: one that nobody asked about may stay."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def stop(pid: int, child: int | None, kill: str | None) -> None:
    """Do as Ctrl-C on a terminal, or kill whom `kill` names."""
    if kill is None:
        os.killpg(pid, signal.SIGINT)
    if kill in ("child", "both") and child:
        os.kill(child, signal.SIGKILL)
    if kill in ("parent", "both"):
        os.kill(pid, signal.SIGKILL)


def run(program: str, stop_after_s: float | None, kill: str | None = None) -> tuple[float, End]:
    """Run it in a folder of its own; return the seconds it took and how it ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(BEFORE / "bundle", folder / "old.bundle")
        places = {"data": BEFORE / "data", "run": BEFORE / "run", "bundle": BEFORE / "bundle"}
        command = [sys.executable, "-m", "irv2", *PROGRAMS[program].format(name, **places).split()]
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        )
        child = None
        if stop_after_s is not None:
            time.sleep(stop_after_s)
            child = child_of(process.pid) if program == "export" else None
            if process.poll() is None:
                with suppress(ProcessLookupError):  # the child has ended meanwhile
                    stop(process.pid, child, kill)
        elif program == "serve":
            assert process.stderr is not None
            while "ready" not in read_line(process.stderr):
                assert process.poll() is None
            os.killpg(process.pid, signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return PATIENCE_S, End(-9, "", ["a program that hangs"])
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        took_s = time.monotonic() - begun
        is_done, child_lives = process.returncode == 0, lives(child)
        left = [p.name for p in folder.iterdir() if p.name[0] == "." or p.name not in MAY_STAY]
        left = [] if is_done else sorted(left)
        return took_s, End(process.returncode, stderr, left, kill, child_lives)


@click.command()
@click.argument("programs", nargs=-1, type=click.Choice(list(PROGRAMS)))
@click.option("--moments", default=500, show_default=True, help="Tries over all programs.")
@click.option("--seed", default=0, show_default=True)
@click.option("--kill", type=click.Choice(["parent", "child", "both"]), help="Of exports alone.")
def main(programs: tuple[str, ...], moments: int, seed: int, kill: str | None) -> None:
    """Stop PROGRAMS (default: all) at random moments and print a table of what came of it."""
    # A job in the background ignores Ctrl-C, and so would the programs that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = ("export",) if kill else programs or tuple(PROGRAMS)
    rng = random.Random(seed)
    lengths = {name: run(name, None)[0] for name in names}
    ends: dict[str, Counter[str]] = {name: Counter() for name in names}
    with suppress(KeyboardInterrupt):  # then the table is of what was tried
        for i in range(moments):
            name = names[i % len(names)]
            moment_s = rng.uniform(0, 1.1 * lengths[name])
            _, end = run(name, moment_s, kill)
            ends[name][end.verdict] += 1
            if end.verdict not in FINE:
                click.echo(f"{name} after {moment_s:.3f} s: {end.verdict}\n{end.stderr}", err=True)
    verdicts = sorted(set().union(*ends.values()))
    rows = [
        (name, f"{lengths[name]:.1f}", *(ends[name][verdict] for verdict in verdicts))
        for name in names
    ]
    click.echo(tabulate(rows, ("program", "s", *verdicts)))
    sys.exit(bool(set(verdicts) - FINE))


if __name__ == "__main__":
    main()
