"""Training runs killed 20 times each end like runs that never were.

    python tests/long/kill_and_resume.py [--only fine-tuning]

With two worker processes, then with two ranks under torchrun: the run is killed with SIGKILL, and
started again by the same command, 20 times: 3 times inside a save, 3 times in an evaluation, else
at random. Then it may end. A fine-tuning is killed 20 times, soon after it has left something new:
6 times while it computes features, 7 times each while it trains the last layer on them and the
whole network. Exit status 1 where weights or metrics differ from those of a run never killed, or
where the kills did not fall as said. About 20 minutes on 2 cores.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # the tests' own modules

from same_run import assert_same_run

from irv2.checkpoint import Checkpoint

NUM_TRAIN, NUM_VAL, BATCH = 64, 400, 8
AIMS = ["save"] * 3 + ["evaluation"] * 3 + ["anywhere"] * 14
AT_LEAST = {"save": 2, "evaluation": 2, "after the first step": 15}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
FINETUNING = {  # what it leaves while it is in each phase, and how often it is killed there
    "features": ("head/features/*/train-*.npz", 6),
    "last layer": ("head/last.pt", 7),
    "network": ("last.pt", 7),
}
AT_LEAST_IN_EACH = 4
RANDOM_S = (3.0, 9.0)  # after the start, which itself takes about four
SOON_S = 1.0
PATIENCE_S = 120.0
LOOK_EVERY_S = 0.003
STOP_S = 1.0
PLACES = ("save", "evaluation", "steps")  # steps: after the first, before the last of an epoch
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # equal bits need a fixed number of threads


@dataclass(frozen=True)
class Way:
    """How a run is started."""

    name: str
    launcher: list[str]
    options: list[str]

    def command(self, data: Path, out: Path, num_epochs: int = 80) -> list[str]:
        """A small network, saved after every step; by default long enough for 20 kills."""
        return [
            sys.executable,
            "-m",
            *self.launcher,
            "irv2",
            "train",
            "--setting",
            "2",
            "--width",
            "0.1",
            "--blocks",
            "1",
            "1",
            "1",
            "--image-size",
            "75",
            "--batch-size",
            str(BATCH),
            "--bn-group",
            "4",
            "--epochs",
            str(num_epochs),
            "--device",
            "cpu",
            "--save-minutes",
            "0",
            "--data",
            str(data),
            "--out",
            str(out),
            *self.options,
        ]


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
    """One start of a run, to be killed as a whole."""

    def __init__(self, command: list[str], out: Path) -> None:
        self._out = out
        self._old_parts, self._old_save = set(self._parts()), self._last_save()
        self._log = out.with_suffix(".log").open("a")
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def kill_in(self, aim: str, rng: np.random.Generator) -> str:
        """Kill at such a moment; returns where it truly was."""
        try:
            self._stop_in(aim, rng)
            return next((place for place in PLACES if self._is_in(place)), "elsewhere")
        finally:
            if self.process.poll() is None:
                self._signal(signal.SIGKILL)
            self.process.wait()
            self._log.close()

    def kill_after_progress(self, files: str, rng: np.random.Generator) -> None:
        """Kill within a second after one of these files of the run's folder was written anew."""
        before, until = self._written(files), time.monotonic() + PATIENCE_S
        while self._written(files) == before:
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"nothing new in {files}; see {self._log.name}")
            time.sleep(LOOK_EVERY_S)
        time.sleep(rng.uniform(0, SOON_S))
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def _written(self, files: str) -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in self._out.glob(files)}

    def _stop_in(self, aim: str, rng: np.random.Generator) -> None:
        until = time.monotonic() + PATIENCE_S
        if aim == "anywhere":
            time.sleep(rng.uniform(*RANDOM_S))
        while True:
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"no {aim} to be seen; see {self._log.name}")
            self._stop()  # so that the moment can't pass while it is looked at
            if aim == "anywhere" or self._is_in(aim):
                return
            self._signal(signal.SIGCONT)
            time.sleep(LOOK_EVERY_S)

    def _stop(self) -> None:
        """Returns when every thread stands still: the signal alone does not wait for that.

        A process that was stopped between fork and exec keeps its parent from stopping: then both
        go on for a moment.
        """
        while True:
            self._signal(signal.SIGSTOP)
            until = time.monotonic() + STOP_S
            while time.monotonic() < until:
                if all(state in "TZX" for state in self._thread_states()):
                    return
                time.sleep(0.001)
            self._signal(signal.SIGCONT)
            time.sleep(LOOK_EVERY_S)

    def _thread_states(self) -> Iterator[str]:
        for leader in self._leaders():
            for stat in Path(f"/proc/{leader}/task").glob("*/stat"):
                with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
                    yield stat.read_text().rpartition(")")[2].split()[0]

    def _signal(self, number: int) -> None:
        for leader in self._leaders():
            with suppress(ProcessLookupError):
                os.killpg(leader, number)

    def _leaders(self) -> set[int]:
        """The program and, where it is torchrun, its processes: each leads a group of its own."""
        pid = self.process.pid
        leaders = {pid}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                leaders.add(os.getpgid(int(child)))
        return leaders

    def _is_in(self, place: str) -> bool:
        is_saving = bool(set(self._parts()) - self._old_parts)
        if place == "save" or is_saving or self._last_save() == self._old_save:
            return place == "save" and is_saving
        state = Checkpoint.load(self._out / "last.pt").training
        is_trained = state["batch"] == NUM_TRAIN // BATCH
        is_evaluated = is_trained and state["epoch"] > num_rows(self._out)
        return is_evaluated if place == "evaluation" else not is_trained

    def _parts(self) -> list[Path]:
        return list(self._out.glob(".last.pt.*"))

    def _last_save(self) -> int:
        path = self._out / "last.pt"
        return path.stat().st_mtime_ns if path.exists() else 0


def num_rows(out: Path) -> int:
    """Epochs in metrics.jsonl."""
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def check(way: Way, data: Path, folder: Path) -> Counter[str]:
    """Run it twice, once killed again and again; returns where the kills fell."""
    whole, killed = folder / f"{way.name} whole", folder / f"{way.name} killed"
    subprocess.run(way.command(data, whole), env=ENVIRONMENT, check=True, capture_output=True)
    rng = np.random.default_rng(0)
    places: Counter[str] = Counter()
    for aim in rng.permutation(AIMS):
        place = Victim(way.command(data, killed), killed).kill_in(aim, rng)
        is_after_a_step = (killed / "last.pt").exists()
        step = Checkpoint.load(killed / "last.pt").step if is_after_a_step else 0
        places += Counter({place: 1, "after the first step": int(is_after_a_step)})
        print(f"{way.name}: killed in {place}, last.pt at step {step}", flush=True)
    subprocess.run(way.command(data, killed), env=ENVIRONMENT, check=True, capture_output=True)
    assert_same_run(killed, whole)
    return places


def check_finetuning(data: Path, folder: Path) -> Counter[str]:
    """Do the same to a fine-tuning; returns in what the kills fell."""
    begun, whole, killed = (folder / f"fine-tuning {name}" for name in ("begun", "whole", "killed"))
    first = WAYS[0].command(data, begun, num_epochs=1)
    subprocess.run(first, env=ENVIRONMENT, check=True, capture_output=True)
    rng = np.random.default_rng(0)
    places: Counter[str] = Counter()
    for files, num in FINETUNING.values():
        for _ in range(num):
            Victim(finetuning(begun, data, killed), killed).kill_after_progress(files, rng)
            done = [(killed / "head" / "metrics.jsonl").exists(), (killed / "last.pt").exists()]
            place = list(FINETUNING)[sum(done)]
            places[place] += 1
            print(f"fine-tuning: killed in {place}", flush=True)
    for out in (killed, whole):
        subprocess.run(
            finetuning(begun, data, out), env=ENVIRONMENT, check=True, capture_output=True
        )
    assert_same_run(killed / "head", whole / "head")
    assert_same_run(killed, whole, from_same_file=False)  # each from the best.pt of its own head
    return places


def finetuning(begun: Path, data: Path, out: Path) -> list[str]:
    """Fine-tune the network of the run `begun`, long enough for 20 kills."""
    options = (
        "--feature-crops 48 --head-epochs 60 --epochs 25 --batch-size 8 --bn-group 4 "
        "--save-minutes 0 --workers 1 --device cpu"
    )
    program = [sys.executable, "-m", "irv2", "finetune", str(begun / "best.pt")]
    return [*program, *options.split(), "--data", str(data), "--out", str(out)]


def main() -> None:
    names = [*(way.name for way in WAYS), "fine-tuning"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=names)
    arguments = parser.parse_args()
    wanted = [arguments.only] if arguments.only else names
    with TemporaryDirectory() as name:
        data = write_images(Path(name) / "data")
        for way in (way for way in WAYS if way.name in wanted):
            places = check(way, data, Path(name))
            print(f"{way.name}: the same run after 20 kills; {json.dumps(places)}")
            if any(places[place] < num for place, num in AT_LEAST.items()):
                raise SystemExit(f"the kills did not fall as they should: {AT_LEAST}")
        if "fine-tuning" in wanted:
            places = check_finetuning(data, Path(name))
            print(f"a fine-tuning: the same run after {places.total()} kills; {json.dumps(places)}")
            if any(places[place] < AT_LEAST_IN_EACH for place in FINETUNING):
                raise SystemExit(f"the kills did not fall as they should: {FINETUNING}")


if __name__ == "__main__":
    main()
