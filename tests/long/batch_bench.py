"""`irv2 batch` on 20,000 files beside a bare loop of the same decoder and engine.

    python tests/long/batch_bench.py BUNDLE [--files 20000] [--rounds 5]

Both read the same files with as many threads, on the backend that a server would choose. In the
bare loop nothing is hashed, listed, ordered or written: the next batch is decoded while the engine
runs one. They take turns within a round, the batch twice (A/A). The bar is 95 % of the bare loop;
exit status 1 below it, 2 where the A/A test failed. The program's start is counted in both.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from irv2.bench.rounds import machine, machine_lock, run_rounds
from irv2.serve.bench.site import make_pictures

BAR = 0.95
BARE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import irv2.cli.program
import numpy as np
from irv2.bundle import Bundle
from irv2.images.decode import FILE_LIMITS
from irv2.images.preprocess import preprocess
from irv2.runners.base import CPU_MAX_BATCH
from irv2.runners.choose import open_best
from irv2.system.machine import num_cores

bundle, files = Bundle.open(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())
runner = open_best(bundle.path, bundle.artifacts).runner
size = min(CPU_MAX_BATCH, runner.max_batch)
batches = [files[start : start + size] for start in range(0, len(files), size)]
with runner, ThreadPoolExecutor(num_cores()) as pool:
    def load(path):
        return preprocess(path.read_bytes(), bundle.preprocess, FILE_LIMITS)

    def crops():
        ahead = []
        for batch in batches:
            ahead.append([pool.submit(load, path) for path in batch])
            if len(ahead) > 1 + runner.num_streams:
                yield np.stack([future.result() for future in ahead.pop(0)])
        for loading in ahead:
            yield np.stack([future.result() for future in loading])

    print(sum(map(len, runner.map(crops()))))
"""


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--files", "num", default=20_000)
@click.option("--rounds", default=5)
def main(bundle: Path, num: int, rounds: int) -> None:
    with machine_lock(), TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "photos", num)
        cases = {
            "batch": timed(num, lambda: run_batch(bundle, folder)),
            "bare": timed(num, lambda: run_bare(bundle, folder)),
        }
        found = run_rounds(cases, rounds, aa="batch", title="batch")
    ratio = found.ratio("batch", "bare")
    print(machine())
    print(f"batch {found.median('batch'):.1f}, bare loop {found.median('bare'):.1f} images/s")
    print(f"batch / bare loop: {ratio.to_json()}, A/A: {found.aa('batch').to_json()}")
    if found.is_void("batch"):
        sys.exit(2)
    sys.exit(ratio.value < BAR)


def write_files(folder: Path, num: int) -> None:
    pictures = make_pictures()
    folder.mkdir()
    for number in range(num):  # files of their own, not links: each is read
        (folder / f"{number:06}.jpg").write_bytes(pictures[number % len(pictures)])


def timed(num: int, work: Callable[[], None]) -> Callable[[], float]:
    def rate() -> float:
        started = time.perf_counter()
        work()
        return num / (time.perf_counter() - started)

    return rate


def run_batch(bundle: Path, folder: Path) -> None:
    out = folder / "out.parquet"
    command = [sys.executable, "-m", "irv2", "batch", folder / "photos", out, "--bundle", bundle]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    out.unlink()


def run_bare(bundle: Path, folder: Path) -> None:
    command = [sys.executable, "-c", BARE, str(bundle), str(folder / "photos")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
