"""Whole programs on machines that lack something: disks without locks, disks without room."""

import errno
import os
import subprocess
import sys

from odd_disk import odd_disk
from project import ROOT

BEFORE = ROOT / "tests" / "data" / "before_rooms"
EXPORT = (
    *("export", BEFORE / "run" / "best.pt", "--data", BEFORE / "data", "--precision=fp32,int8"),
    *("--tolerance-top1=30", "--tolerance-top5=30", "--max-batch=4", "--out"),
)
TRAIN = (
    *("train", "--setting=2", "--width=0.03", "--blocks", "1", "1", "1", "--image-size=75"),
    *("--batch-size=8", "--bn-group=4", "--epochs=1", "--workers=1", "--device=cpu"),
    *("--data", BEFORE / "data", "--out"),
)


def irv2(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "irv2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_programs_work_on_a_disk_without_locks_and_say_so_once(tmp_path):
    bundle, run = tmp_path / "b.bundle", tmp_path / "run"
    left = tmp_path / ".b.bundle.12345678.tmp"  # by a killed export, or by one at work
    left.mkdir()
    (left / "lock").touch()
    environment = odd_disk(tmp_path)
    for arguments in (
        (*EXPORT, bundle),
        ("verify", bundle, "--data", BEFORE / "data"),
        (*TRAIN, run),
        ("data", "shard", BEFORE / "data", tmp_path / "shards"),
    ):
        done = irv2(*arguments, env={**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert done.returncode == 0, done.stderr
        uses_locks, syncs = arguments[0] in ("export", "train"), arguments[0] != "data"
        assert done.stderr.count(f"can't be locked ({os.strerror(errno.ENOLCK)})") == uses_locks
        assert done.stderr.count(f"can't be synced ({os.strerror(errno.EINVAL)})") == syncs
    assert (bundle / "bundle.json").is_file()
    assert (run / "best.pt").is_file()
    assert [*tmp_path.glob(".*")] == [left]
