"""Whole programs on machines that lack something: disks without locks, disks without room."""

import errno
import functools
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import in_process
import pytest
from cgroups import MEMORY_LIMIT, limited_memory, within
from odd_disk import odd_disk, used_up_quota
from process_output import read_line
from project import ROOT

BEFORE = ROOT / "tests" / "data" / "before_rooms"
EXPORT = (
    *("export", BEFORE / "run" / "best.pt", "--data", BEFORE / "data", "--precision=fp32,int8"),
    *("--tolerance-top1=30", "--tolerance-top5=30", "--max-batch=4", "--out"),
)
# Where a library just fits and its threads' own data does not, no program gets to say anything.
ENDED_BY_GLIBC = 127
TRAIN = (
    *("train", "--setting=2", "--width=0.03", "--blocks", "1", "1", "1", "--image-size=75"),
    *("--batch-size=8", "--bn-group=4", "--epochs=1", "--workers=1", "--device=cpu"),
    *("--data", BEFORE / "data", "--out"),
)


def irv2(
    *arguments: object, before: Sequence[str] = (), **options
) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "irv2", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **options
    )


@pytest.mark.slow
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


def memory_of(mebibytes: int) -> Callable[[], None]:
    """What limits a program's address space, as `ulimit -v` does."""
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20,) * 2)


@pytest.mark.parametrize(
    ("program", "mebibytes"),
    [("export", 300), ("export", 680), ("train", 300), ("serve", 300)],
)
def test_too_little_memory_is_one_line(tmp_path, program, mebibytes):
    bundle = BEFORE / "bundle"
    arguments = {
        "export": (*EXPORT, tmp_path / "b.bundle"),
        "train": (*TRAIN, tmp_path / "run"),
        "serve": ("serve", bundle, "--listen=127.0.0.1:0"),
    }[program]
    done = irv2(*arguments, preexec_fn=memory_of(mebibytes))
    *before, line = done.stderr.splitlines()
    assert "Traceback" not in "".join(before)
    if done.returncode == ENDED_BY_GLIBC:
        assert line == "cannot allocate memory for thread-local data: ABORT"
    else:
        assert done.returncode == 1, done.stderr
        assert line.startswith("error: memory: ")
        assert f"ulimit -v {mebibytes << 10}" in line
    assert not [*tmp_path.glob(".b.*")]


def test_an_export_at_the_limit_of_its_cgroup_names_the_limit(tmp_path):
    try:
        with limited_memory(300 << 20) as group:
            done = irv2(*EXPORT, tmp_path / "b.bundle", before=within(group))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "memory: irv2 export was ended by SIGKILL, by the kernel, at the memory limit" in line
    assert f"300 MiB ({group / MEMORY_LIMIT})" in line
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def exporting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """An export at work on its hidden folder, and the id of the child that does the work."""
    command = [sys.executable, "-m", "irv2", *map(str, EXPORT), str(tmp_path / "b.bundle")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert "model.onnx" in read_line(process.stderr)
        [hidden] = tmp_path.glob(".b.*.tmp")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        yield process, int(children.read_text())
    assert not hidden.exists()
    assert not (tmp_path / "b.bundle").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_an_export_that_the_kernel_or_a_library_ends_is_one_line(exporting, number):
    process, child = exporting
    os.kill(child, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"error: memory: irv2 export was ended by {number.name}" in stderr.splitlines()[-1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_an_export_reaches_the_child_once(exporting, number, status):
    process, _ = exporting
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert stderr.count("error: stopped by ") == 1


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one page."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_names_the_place_and_the_way_out(tmp_path, full_disk):
    data, run = BEFORE / "data", BEFORE / "run"
    features = ("features", data / "val", f"--model={run}/best.pt", f"--out={full_disk}/f.npz")
    # Python looks once for its folder of temporary files, so that takes a process of its own.
    in_tmpdir = functools.partial(irv2, env={**os.environ, "TMPDIR": str(full_disk)})
    for program, arguments, named in (
        (in_process.irv2, (*EXPORT, full_disk / "b.bundle"), "b.bundle/model.onnx"),
        (in_tmpdir, (*EXPORT, tmp_path / "b.bundle"), ""),
        (in_process.irv2, (*TRAIN, full_disk / "run"), "run/"),
        (in_process.irv2, ("data", "shard", data, full_disk / "shards"), "shards"),
        (in_process.irv2, features, "f.npz"),
        (in_process.irv2, ("plot", run, "-o", full_disk / "p.png"), "p.png"),
    ):
        done = program(*arguments)
        assert done.returncode == 1, (arguments, done.stderr)
        line = done.stderr.splitlines()[-1]
        assert line.startswith("error: "), line
        assert str(full_disk / named) in line
        assert "expected free space; free some" in line
        assert "Traceback" not in done.stderr
    assert [*tmp_path.glob(".b.*")] == []


@pytest.mark.slow
def test_a_full_disk_a_quota_and_a_limit_of_files_say_how_much_was_to_be_written(
    tmp_path, full_disk
):
    quota, limit = tmp_path / "quota", 8192
    quota.mkdir()
    free_some = "free space; free some, or name another disk"
    for place, number, said, way_out, options in (
        (full_disk, errno.ENOSPC, r", 0\.0 MB free", free_some, {}),
        (quota, errno.EDQUOT, "", free_some, {"env": used_up_quota(tmp_path, quota)}),
        (
            quota,
            errno.EFBIG,
            r", 0\.0 MB by ulimit -f",
            "a limit that allows files of this size; raise ulimit -f$",
            {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))},
        ),
    ):
        done = irv2(*EXPORT, place / "b.bundle", **options)
        assert done.returncode == 1, done.stderr
        line = done.stderr.splitlines()[-1]
        reason = rf"{os.strerror(number)}: \d+\.[1-9] MB to write{said}"
        start = rf"error: {place}/b.bundle/model.onnx: can't be written \({reason}\); "
        assert re.match(start + f"expected {way_out}", line), line
        assert [*place.iterdir()] == []


@pytest.mark.slow
def test_a_cache_without_room_does_not_fail_the_work_and_is_told_of_once(tmp_path, full_disk):
    arguments = (*EXPORT, tmp_path / "b.bundle")
    done = irv2(*arguments, env={**os.environ, "XDG_CACHE_HOME": str(full_disk)})
    assert done.returncode == 0, done.stderr
    [notice] = [line for line in done.stderr.splitlines() if "cache" in line]
    reason = rf"can't be written \({os.strerror(errno.ENOSPC)}: \d+\.\d MB to write, 0\.0 MB free\)"
    assert re.match(rf"cache: {full_disk}/irv2\S*: {reason}; ", notice), notice
    assert "every start takes the time again" in notice
