"""Decoding processes end, and with them the trainer, whatever happens to them or to it."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cgroups import MEMORY_LIMIT, limited_memory, within
from torch.utils.data import DataLoader, Dataset

from irv2.errors import EngineError
from irv2.train.data.workers import prepare_worker, sent

UNSHARE = ["unshare", "--mount", "--map-root-user"]


class Failing(Dataset[int]):
    """Fails at item 5, in the given way."""

    def __init__(self, way: Exception | signal.Signals) -> None:
        self._way = way

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> int:
        if i == 5 and isinstance(self._way, Exception):
            raise self._way
        if i == 5:
            os.kill(os.getpid(), self._way)
        return i


def loader(way: Exception | signal.Signals) -> DataLoader[Any]:
    return DataLoader(Failing(way), batch_size=1, num_workers=2, worker_init_fn=prepare_worker)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (signal.SIGKILL, "exited unexpectedly|Connection reset|Connection refused|EOFError"),
        (signal.SIGSEGV, "exited unexpectedly|Connection reset|Connection refused|EOFError"),
    ],
    ids=str,
)
def test_whatever_fails_in_a_worker_is_one_line_and_ends_all(way, said):
    before = multiprocessing.active_children()
    with pytest.raises(EngineError, match=rf"a decoding process: .*({said}).*lower --workers"):
        list(sent(loader(way)))
    for worker in set(multiprocessing.active_children()) - set(before):
        worker.join(timeout=20)
        assert not worker.is_alive()


def test_workers_of_another_loader_go_on():
    first, second = sent(loader(MemoryError())), sent(loader(MemoryError()))
    assert [int(next(first)), int(next(second))] == [0, 0]
    first.close()
    assert [int(next(second)) for _ in range(4)] == [1, 2, 3, 4]
    second.close()


def run(
    program: str, *arguments: str, before: Sequence[str] = (), **options: Any
) -> tuple[int, str]:
    """Run Python code, in which `DataLoader`, `Failing`, `sent` and so on are known."""
    start = (
        "from test_workers import *; import resource\n"
        "from irv2.train.data.workers import require_resources"
    )
    done = subprocess.run(
        [*before, sys.executable, "-c", f"{start}\n{program}", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    return done.returncode, done.stderr


LIMITED = """
soft, hard, workers = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
require_resources(workers)
print(resource.getrlimit(resource.RLIMIT_NOFILE), file=sys.stderr)
"""


def test_too_few_open_files_are_one_line_before_a_worker_starts():
    status, stderr = run(LIMITED, "64", "64", "16")
    assert status == 1
    assert "EngineError: --workers 16: this process may open 64 files; expected " in stderr
    assert "(ulimit -n 3" in stderr


def test_the_soft_limit_of_open_files_is_raised_to_what_workers_need():
    status, stderr = run(LIMITED, "64", "1000", "16")
    [soft, hard] = stderr.strip(" ()\n").split(", ")
    assert (status, hard) == (0, "1000")
    assert 352 <= int(soft) < 1000


def test_a_limit_is_left_alone_without_workers():
    assert run(LIMITED, "64", "64", "0") == (0, "(64, 64)\n")


HUNGRY = """
import torch

class Hungry(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return torch.ones(2**30).sum()

data = DataLoader(Hungry(), num_workers=1, worker_init_fn=prepare_worker)
try:
    next(sent(data))
except EngineError as error:
    sys.exit(f"error: {error}")
"""


def test_a_worker_that_is_killed_at_the_limit_of_its_cgroup_names_the_limit():
    try:
        with limited_memory(2000 << 20) as group:
            status, stderr = run(HUNGRY, before=within(group))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert status == 1
    assert stderr.startswith("error: a decoding process: was lost (killed by the kernel, at the ")
    assert f"2000 MiB ({group / MEMORY_LIMIT})" in stderr


STARTED_IN_PART = """
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
data = DataLoader(Failing(MemoryError()), num_workers=16, worker_init_fn=prepare_worker)
try:
    next(sent(data))
except EngineError as error:
    sys.exit(f"error: {error}")
"""


def test_a_loader_that_fails_with_some_workers_started_leaves_none():
    status, stderr = run(STARTED_IN_PART)
    assert status == 1
    assert "error: a decoding process: was lost (" in stderr
    assert "Too many open files" in stderr


NEVER_CLOSED = """
batches = sent(loader(MemoryError()))
next(batches)
for worker in multiprocessing.active_children():
    print(worker.pid, file=sys.stderr)
sys.exit(3)
"""


def test_a_process_that_left_its_batches_open_ends():
    status, stderr = run(NEVER_CLOSED)
    assert status == 3
    assert stderr.split()
    for pid in stderr.split():
        assert not Path("/proc", pid).exists()


@pytest.mark.parametrize("mount", ["-t tmpfs -o ro none", "--bind /proc"])
def test_a_missing_or_read_only_shm_is_one_line_that_names_workers_0(mount):
    mounted = (*UNSHARE, "sh", "-c", f'mount {mount} /dev/shm && exec "$@"', "sh")
    if subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    status, stderr = run("require_resources(1)", before=mounted)
    assert status == 1
    assert "EngineError: /dev/shm: can't be used (" in stderr
    assert "pass --workers 0: the trainer decodes" in stderr
    assert run("require_resources(0)", before=mounted) == (0, "")
