"""`irv2 batch` from its command line: killed and gone on with, from a bundle and from servers."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from batch_folder import ALL_NAMES, BAD_NAMES, write_folder
from batch_kills import Batch, require_once, write_many
from serving_process import serving
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle

NUM = 1500


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    return write_many(tmp_path_factory.mktemp("many") / "pictures", NUM)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "b.bundle")


def names_below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*.jpg")]


def batch(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "irv2", "batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_killed_work_goes_on_and_has_every_file_once(many, bundle, tmp_path):
    whole = Batch(many, tmp_path / "whole.parquet", "--bundle", str(bundle))
    assert whole.finish().returncode == 1  # two files have errors
    killed = Batch(many, tmp_path / "killed.parquet", "--bundle", str(bundle))
    rng = random.Random(0)
    killed.kill_in("listing", signal.SIGKILL, rng)
    killed.kill_in("work", signal.SIGKILL, rng)
    assert killed.kill_in("work", signal.SIGTERM, rng).endswith("error: stopped by SIGTERM\n")
    num_done = sum(pq.read_metadata(path).num_rows for path in killed.folder.glob("part-*"))
    assert 100 < num_done < NUM
    done = killed.finish()
    assert (done.returncode, "error" in done.stderr) == (1, False)
    assert f"{NUM + 2} files" in done.stdout
    assert "2 of them with errors: NOT_AN_IMAGE 1, UNREADABLE 1" in done.stdout
    found = require_once(killed.out, names_below(many))
    assert found == require_once(whole.out, names_below(many))
    assert not killed.folder.exists()


@pytest.mark.slow
def test_servers_may_all_be_killed_and_a_bundle_of_their_model_goes_on(many, bundle, tmp_path):
    out = tmp_path / "out.parquet"
    with serving(bundle, "--threads", "1") as first, serving(bundle, "--threads", "1") as second:
        work = Batch(many, out, "--server", f"{first.address},{second.address}")
        process = work.start()
        while not any(work.folder.glob("part-*")) and process.poll() is None:
            time.sleep(0.001)
        first.popen.kill()
        second.popen.kill()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    *_, last = stderr.splitlines()
    assert last.startswith("error: ")
    assert "no server answers" in last
    assert stderr.count("error: ") == 1
    assert stderr.count("the other servers go on") == 1
    num_done = sum(pq.read_metadata(path).num_rows for path in work.folder.glob("part-*"))
    assert 50 <= num_done < NUM
    assert batch(many, out, "--bundle", bundle).returncode == 1  # two files have errors
    found = require_once(out, names_below(many))
    assert sum(reason is None for *_, reason, _ in found.values()) == NUM


def test_every_row_says_what_classify_says(bundle, tmp_path):
    folder, out = write_folder(tmp_path / "pictures"), tmp_path / "out.parquet"
    done = batch(folder, out, "--bundle", bundle, "--json", "--top-k", "3")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "out": str(out),
        "n": len(ALL_NAMES),
        "num_errors": 2,
        "errors": {"NOT_AN_IMAGE": 1, "UNREADABLE": 1},
        "model_id": Bundle.open(bundle).id,
    }
    rows = pq.read_table(out).to_pylist()
    results = Bundle.open(bundle).classify([folder / "0.jpg"] * len(rows), 3)
    by_name = {row["file"]: row for row in rows}
    assert {n: r["reason"] for n, r in by_name.items() if r["error"]} == BAD_NAMES
    for name in ("0.jpg", "b/shard.tar/cat/1.jpg"):
        assert by_name[name]["classes"] == [score.label for score in results[0].scores]
        expected = [score.probability for score in results[0].scores]
        assert by_name[name]["probabilities"] == pytest.approx(expected)
    assert "a/\\xff.jpg" in by_name


def test_what_is_not_the_same_work_is_one_line_and_nothing_is_lost(bundle, tmp_path):
    folder, out = write_folder(tmp_path / "pictures"), tmp_path / "out.parquet"
    (folder / "gone.jpg").unlink()
    (folder / "b" / "no picture.png").unlink()
    assert batch(folder, out, "--bundle", bundle).returncode == 0
    before = out.read_bytes()
    other = write_tiny_bundle(tmp_path / "other.bundle", seed=1)
    (tmp_path / "moved").mkdir()
    write_folder(tmp_path / "moved" / "pictures")
    for arguments, message in (
        ((folder, "--bundle", other), "was begun with model "),
        ((folder, "--bundle", bundle, "--top-k", "2"), "was begun with --top-k 5; expected the"),
        ((tmp_path / "moved" / "pictures", "--bundle", bundle), "was begun with source "),
    ):
        done = batch(arguments[0], out, *arguments[1:])
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    (folder / "new.jpg").write_bytes((folder / "0.jpg").read_bytes())
    done = batch(folder, out, "--bundle", bundle)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"8 files now, not the 7 of the start of {out}" in done.stderr
    assert batch(folder, out, "--bundle", bundle, "--as-listed").returncode == 0
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "neither --server nor --bundle given; expected one"),
        (("--bundle", "b", "--server", "h:1"), "both --server and --bundle given"),
        (("--server", "nonsense"), "address: 'nonsense'; expected HOST:PORT"),
        (("--bundle", "nowhere"), "nowhere: no bundle.json in it"),
    ],
)
def test_wrong_options_are_one_line_before_any_work(options, message, many, tmp_path):
    done = batch(many, tmp_path / "out.parquet", *options)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
