"""The memory of `irv2 batch` for a list of ten million names, by parts of the work.

    python tests/long/batch_memory.py [--names 10000000]

The list names files that are not there, so that names, rows and parts are all there is to hold and
no picture takes time: every row is an error. The program's resident memory is read every second,
and the largest is printed for the listing, for each fifth of the rows, and for the joining. Exit
status 1 where the last fifth takes over 20 % more than the first, or a name is not in the result
once.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # the tests' own modules

import pyarrow.parquet as pq
from fuzzing import memory_mb
from tiny_bundle import write_tiny_bundle

NUM_STAGES = 5


@click.command()
@click.option("--names", "num", default=10_000_000)
def main(num: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        bundle = write_tiny_bundle(folder / "b.bundle")
        with (folder / "list.csv").open("w") as file:
            file.write("path\n")
            for i in range(num):  # not in the order of their names
                file.write(f"photos/{i * 7919 % num:09}/a photograph of an ordinary name.jpg\n")
        out = folder / "out.parquet"
        most = watch(folder / "list.csv", out, bundle, num)
        for stage, mb in most.items():
            print(f"{stage}: {mb:.0f} MB")
        check(out, num)
        if most[f"rows {NUM_STAGES}/{NUM_STAGES}"] > 1.2 * most[f"rows 1/{NUM_STAGES}"]:
            raise SystemExit("memory grows with the number of names")


def watch(source: Path, out: Path, bundle: Path, num: int) -> dict[str, float]:
    command = [sys.executable, "-m", "irv2", "batch", str(source), str(out)]
    process = subprocess.Popen(
        [*command, "--bundle", str(bundle), "--json"], stdout=subprocess.PIPE, text=True
    )
    most: dict[str, float] = {}
    while process.poll() is None:
        starts = [int(path.stem.removeprefix("part-")) for path in parts_of(out)]
        stage = "listing"
        if starts:
            stage = f"rows {max(starts) * NUM_STAGES // num + 1}/{NUM_STAGES}"
        if any(out.parent.glob(".out.parquet.*.tmp")):
            stage = "joining"
        most[stage] = max(most.get(stage, 0), memory_mb(process.pid))
        time.sleep(1)
    assert json.load(process.stdout)["errors"] == {"UNREADABLE": num}
    return most


def parts_of(out: Path) -> list[Path]:
    return list(out.with_name(f"{out.name}.parts").glob("part-*"))


def check(out: Path, num: int) -> None:
    """Names are unique and sorted, so that as many that grow are each once."""
    last, found = "", 0
    for batch in pq.ParquetFile(out).iter_batches(columns=["file"]):
        for name in batch.column(0).to_pylist():
            assert name > last, f"{name} after {last}"
            last, found = name, found + 1
    assert found == num


if __name__ == "__main__":
    main()
