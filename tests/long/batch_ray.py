"""A batch on two Ray nodes of which one is killed in the middle has the rows of one without Ray.

    python tests/long/batch_ray.py

Needs the package ray. Both nodes are on this machine, each with its own processes; those of one get
SIGKILL once the first parts are written. Exit status 1 where a row is missing, twice or another.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # the tests' own modules

from batch_kills import Batch, require_once, write_many
from ray.cluster_utils import Cluster
from tiny_bundle import write_tiny_bundle

NUM = 20_000


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        many, bundle = write_many(folder / "pictures", NUM), write_tiny_bundle(folder / "b.bundle")
        names = [str(path.relative_to(many)) for path in many.rglob("*.jpg")]
        whole = Batch(many, folder / "whole.parquet", "--bundle", str(bundle))
        assert whole.finish().returncode == 1  # two files have errors
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            doomed = cluster.add_node(num_cpus=1)
            work = Batch(
                many, folder / "ray.parquet", "--bundle", str(bundle), "--ray", cluster.address
            )
            stop(work)
            stderr = run_and_kill(work, cluster, doomed)
        finally:
            cluster.shutdown()
        assert "the node is gone; the others go on" in stderr, stderr
        assert require_once(work.out, names) == require_once(whole.out, names)
        print(f"{len(names)} files, each once, with one of two nodes killed:\n{stderr}")


def stop(work: Batch) -> None:
    """SIGTERM ends it as it does without Ray, which sets a handler of its own."""
    work.kill_in("work", signal.SIGTERM, random.Random(0))


def run_and_kill(work: Batch, cluster: Cluster, doomed: object) -> str:
    process = work.start()
    num_before = len(list(work.folder.glob("part-*")))
    while len(list(work.folder.glob("part-*"))) == num_before and process.poll() is None:
        time.sleep(0.001)
    cluster.remove_node(doomed, allow_graceful=False)
    assert process.poll() is None, f"ended before the kill: {process.stderr.read()}"
    try:
        _, stderr = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 1, stderr  # two files have errors
    return stderr


if __name__ == "__main__":
    main()
