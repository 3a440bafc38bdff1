"""A batch killed 20 times has every file exactly once, with the answers of one never killed.

    python tests/long/batch_kills.py

From a bundle, then from two servers of which one is killed as well. SIGKILL falls 3 times into the
listing of names, 2 times into the joining of parts, else into the work. Exit status 1 where the
result differs, or where a kill did not fall as said. A few minutes on 2 cores.
"""

import random
import signal
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # the tests' own modules

import pyarrow.parquet as pq
from batch_kills import Batch, require_once, write_many
from serving_process import serving
from tiny_bundle import write_tiny_bundle

NUM = 20_000
MOMENTS = ["listing"] * 3 + ["work"] * 15 + ["join"] * 2


def check(way: str, many: Path, killed: Batch, expected: dict[str, tuple]) -> None:
    rng = random.Random(0)
    for moment in MOMENTS:  # in the order of the work: what is joined is done
        killed.kill_in(moment, signal.SIGKILL, rng)
        num_done = sum(pq.read_metadata(path).num_rows for path in killed.folder.glob("part-*"))
        print(f"{way}: killed in {moment}, {num_done} of {len(expected)} rows written", flush=True)
    done = killed.finish()
    assert done.returncode == 1, done.stderr  # two files have errors
    found = require_once(killed.out, list(expected))
    left = [path.name for path in killed.out.parent.glob(f"*{killed.out.name}*")]
    assert left == [killed.out.name], f"left: {left}"
    assert found == expected, "other answers than those of a run never killed"
    print(f"{way}: {len(found)} files, each once, after {json_of(Counter(MOMENTS))} kills")


def json_of(counts: Counter[str]) -> str:
    return ", ".join(f"{num} {moment}" for moment, num in counts.items())


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        many = write_many(folder / "pictures", NUM)
        names = [str(path.relative_to(many)) for path in many.rglob("*.jpg")]
        bundle = write_tiny_bundle(folder / "b.bundle")
        whole = Batch(many, folder / "whole.parquet", "--bundle", str(bundle))
        assert whole.finish().returncode == 1
        expected = require_once(whole.out, names)
        killed = Batch(many, folder / "bundle.parquet", "--bundle", str(bundle))
        check("bundle", many, killed, expected)
        with serving(bundle) as dying, serving(bundle) as other:
            out, addresses = folder / "servers.parquet", f"{dying.address},{other.address}"
            killed = Batch(many, out, "--server", addresses)
            killed.kill_in("work", signal.SIGKILL, random.Random(1))
            dying.popen.kill()
            check("servers", many, killed, expected)


if __name__ == "__main__":
    main()
