"""The folder of counters: what a killed server leaves is removed, and nothing else."""

import os
import subprocess
import sys

from irv2.serve.front_ends.counter_folder import PREFIX, CounterFolder

KILLED = """
import os, signal, sys
from pathlib import Path
from irv2.serve.front_ends.counter_folder import CounterFolder
folder = CounterFolder(Path(sys.argv[1]))
(folder.path / "counter_engine.db").write_bytes(b"0")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_server_left_is_removed_by_the_next_and_a_living_one_keeps_its_own(tmp_path):
    living = CounterFolder(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = (path for path in tmp_path.iterdir() if path != living.path)
    assert left.name.startswith(PREFIX)
    os.symlink(living.path, tmp_path / f"{PREFIX}link")  # noqa: PTH211 (of someone who means harm)
    another = CounterFolder(tmp_path)
    assert not left.exists()
    assert living.path.is_dir()
    another.remove()
    living.remove()
    assert [path.name for path in tmp_path.iterdir()] == [f"{PREFIX}link"]
