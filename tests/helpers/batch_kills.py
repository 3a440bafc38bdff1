"""`irv2 batch` in a process of its own, with small parts, killed where it is told to be."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from batch_folder import jpeg

NUM_PICTURES, PATIENCE_S = 50, 120.0
Moment = Literal["listing", "work", "join"]
# A part is small, so that a kill falls between and into many of them; nothing else is changed.
PROGRAM = """
import sys
import irv2.batch.parts
irv2.batch.parts.PART_ROWS = 50
sys.argv[0] = "irv2"
from irv2.__main__ import run
run()
"""


def write_many(root: Path, num: int) -> Path:
    """50 pictures under `num` names, one of which is no picture and one a link to nowhere."""
    for number in range(num):
        path = root / str(number % 7) / f"{number:06}.jpg"
        if number < NUM_PICTURES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
        else:
            first = number % NUM_PICTURES
            os.link(root / str(first % 7) / f"{first:06}.jpg", path)
    (root / "bad.jpg").write_bytes(b"no picture")
    (root / "gone.jpg").symlink_to("nowhere")
    return root


class Batch:
    """A command, for the same OUT again and again."""

    def __init__(self, source: Path, out: Path, *options: str) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self.command = [sys.executable, "-c", PROGRAM, "batch", str(source), str(out), *options]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self) -> subprocess.CompletedProcess:
        return subprocess.run(self.command, capture_output=True, text=True)

    def kill_in(self, moment: Moment, number: int, rng: random.Random) -> str:
        """Start, and send signal `number` in this moment; return what stderr says."""
        before = {*self._parts(), *self._joined()}
        process = self.start()
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_in(moment, before) and process.poll() is None:
            assert time.monotonic() < deadline, moment
            time.sleep(0.001)
        if moment != "join":
            time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, f"ended before a kill in {moment}: {process.stderr.read()}"
        process.send_signal(number)
        _, stderr = process.communicate()
        assert process.returncode in (-number, 128 + number), stderr
        return stderr

    def _is_in(self, moment: Moment, before: set[str]) -> bool:
        if moment == "listing":
            return self.folder.exists() and any(self.folder.glob(".sort-*"))
        if moment == "work":
            return len(set(self._parts()) - before) > 1
        return bool(set(self._joined()) - before)

    def _joined(self) -> list[str]:
        return [path.name for path in self.out.parent.glob(f".{self.out.name}.*.tmp")]

    def _parts(self) -> list[str]:
        return [path.name for path in self.folder.glob("part-*")]


def require_once(out: Path, names: Sequence[str]) -> dict[str, tuple]:
    """Require each name exactly once in the result, in order; return its answers by name."""
    rows = pq.read_table(out).to_pylist()
    found = [row["file"] for row in rows]
    assert len(found) == len(set(found)), "a file twice"
    assert found == sorted(names), "a file is missing, or one too many"
    return {
        row["file"]: (row["sha256"], tuple(row["classes"] or ()), row["reason"], row["model_id"])
        for row in rows
    }
