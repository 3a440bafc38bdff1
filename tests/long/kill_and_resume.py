"""Training runs killed 20 times each end like runs that never were.

    python tests/long/kill_and_resume.py

With two worker processes, then with two ranks under torchrun: the run is killed with SIGKILL, and
started again by the same command, 20 times: 3 times inside a save, 3 times in an evaluation, else
at random. Then it may end. Exit status 1 where weights or metrics differ from those of a run
never killed, or where the kills did not fall as said. About 15 minutes on 2 cores.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own modules

from same_run import assert_same_run

from irv2.checkpoint import Checkpoint

NUM_TRAIN, NUM_VAL, BATCH = 64, 400, 8
AIMS = ["save"] * 3 + ["evaluation"] * 3 + ["anywhere"] * 14
AT_LEAST = {"save": 2, "evaluation": 2, "after the first step": 15}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
RANDOM_S = (3.0, 9.0)  # after the start, which itself takes about four
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Way:
    """How a run is started."""

    name: str
    launcher: list[str]
    options: list[str]

    def command(self, data: Path, out: Path) -> list[str]:
        """A small network, saved after every step, long enough for 20 kills."""
        return [
            sys.executable, "-m", *self.launcher, "irv2", "train", "--setting", "2",
            "--width", "0.1", "--blocks", "1", "1", "1", "--image-size", "75", "--batch-size",
            str(BATCH), "--bn-group", "4", "--epochs", "40", "--device", "cpu",
            "--save-minutes", "0", "--data", str(data), "--out", str(out), *self.options,
        ]  # fmt: skip


WAYS = (
    Way("two workers", [], ["--workers", "2"]),
    Way("two ranks", TORCHRUN, ["--workers", "1"]),
)


def write_images(root: Path) -> Path:
    """Two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for label, low in (("dark", 0), ("light", 128)):
            (root / split / label).mkdir(parents=True)
            for i in range(num // 2):
                pixels = rng.integers(low, low + 128, (80, 90, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


class Victim:
    """One start of a run, in a process group of its own, to be killed as a whole."""

    def __init__(self, command: list[str], out: Path) -> None:
        self._out = out
        self._old_parts = set(self._parts())
        # Bit-identical results need a fixed number of threads.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._log = out.with_suffix(".log").open("a")
        self.process = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def kill_in(self, aim: str, rng: np.random.Generator) -> str:
        """Kill at such a moment; returns where it truly was."""
        started_at = time.monotonic()
        if aim == "anywhere":
            time.sleep(rng.uniform(*RANDOM_S))
        while aim != "anywhere" and not self._is_in(aim):
            if self.process.poll() is not None or time.monotonic() > started_at + PATIENCE_S:
                raise SystemExit(f"no {aim} to be seen; see {self._log.name}")
        if aim == "evaluation":
            time.sleep(0.2)  # it has only just begun
        if self.process.poll() is not None:
            raise SystemExit(f"the run ended before it was killed; see {self._log.name}")
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        return next((place for place in ("save", "evaluation") if self._is_in(place)), "elsewhere")

    def _is_in(self, place: str) -> bool:
        if place == "save":
            return bool(set(self._parts()) - self._old_parts)
        if not (self._out / "last.pt").exists():
            return False
        state = Checkpoint.load(self._out / "last.pt").training
        is_trained = state["batch"] == NUM_TRAIN // BATCH
        return is_trained and state["epoch"] > num_rows(self._out)

    def _parts(self) -> list[Path]:
        return list(self._out.glob(".last.pt.*"))


def num_rows(out: Path) -> int:
    """Epochs in metrics.jsonl."""
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def check(way: Way, data: Path, folder: Path) -> Counter[str]:
    """Run it twice, once killed again and again; returns where the kills fell."""
    whole, killed = folder / f"{way.name} whole", folder / f"{way.name} killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(way.command(data, whole), env=environment, check=True, capture_output=True)
    rng = np.random.default_rng(0)
    places: Counter[str] = Counter()
    for aim in rng.permutation(AIMS):
        place = Victim(way.command(data, killed), killed).kill_in(aim, rng)
        is_after_a_step = (killed / "last.pt").exists()
        step = Checkpoint.load(killed / "last.pt").step if is_after_a_step else 0
        places += Counter({place: 1, "after the first step": int(is_after_a_step)})
        print(f"{way.name}: killed in {place}, last.pt at step {step}", flush=True)
    subprocess.run(way.command(data, killed), env=environment, check=True, capture_output=True)
    assert_same_run(killed, whole)
    return places


def main() -> None:
    with TemporaryDirectory() as name:
        data = write_images(Path(name) / "data")
        for way in WAYS:
            places = check(way, data, Path(name))
            print(f"{way.name}: the same run after 20 kills; {json.dumps(places)}")
            if (
                places["save"] < 2
                or places["evaluation"] < 2
                or places["after the first step"] < 15
            ):
                raise SystemExit("the kills did not fall as they should: 2 in a save, 2 in an "
                                 "evaluation, 15 after the first step")  # fmt: skip


if __name__ == "__main__":
    main()
