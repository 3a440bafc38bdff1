"""To a shell, a terminal and whoever sends signals, a program and its child are one process."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from process_output import read_line
from project import ROOT

PROGRAM = """
import os, sys, time
from irv2.system.child import go_on_in_child
from irv2.system.stop import end_at_once

end_at_once()
go_on_in_child("the program")
print("child", os.getpid(), flush=True)
while True:
    print("at work", flush=True)
    time.sleep(0.05)
"""


class Shell:
    """An interactive bash on a terminal of its own, with job control."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read(self, expected: str) -> str:
        """Return what the terminal shows up to `expected`, and forget it."""
        until = time.monotonic() + 30
        while expected not in self.seen:
            ready, _, _ = select.select([self._terminal], [], [], until - time.monotonic())
            assert ready, self.seen
            self.seen += os.read(self._terminal, 65536).decode()
        before, _, self.seen = self.seen.partition(expected)
        return before

    def close(self) -> None:
        os.close(self._terminal)  # as a terminal's window: the kernel sends SIGHUP
        os.waitpid(self.pid, 0)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell that knows the program as $PROGRAM."""
    program = tmp_path / "program.py"  # whose text the shell can't show as the job's
    program.write_text(PROGRAM)
    command = f"{sys.executable} {program}"
    opened = Shell({**os.environ, "PS1": "", "PROGRAM": command, "TERM": "dumb"})
    yield opened
    with suppress(OSError):  # closed by the test
        opened.close()


def start(shell: Shell, background: str = "") -> tuple[int, int]:
    """Start the program; return the ids of parent and child once both are at work."""
    shell.type(f"$PROGRAM {background}\n")
    shell.read("child ")
    child = int(shell.read("\n"))
    shell.read("at work")
    return int(status_of(child, "PPid")), child


def status_of(pid: int, field: str) -> str:
    """What /proc says of a process; empty if it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return line.split()[1]
    return ""


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def are_stopped(*pids: int) -> bool:
    return all(status_of(pid, "State") == "T" for pid in pids)


def are_gone(*pids: int) -> bool:
    return all(status_of(pid, "State") in ("", "Z") for pid in pids)


def test_ctrl_z_stops_both_and_fg_continues_both(shell):
    processes = start(shell)
    shell.type("\x1a")
    shell.read("Stopped")
    assert are_stopped(*processes)
    shell.type("fg\n")
    shell.read("at work")
    assert not are_stopped(processes[0])
    shell.type("\x1a")  # and again
    shell.read("Stopped")
    assert are_stopped(*processes)
    shell.type("bg\n")
    shell.read("at work")
    shell.type("fg\n")
    shell.read("at work")
    shell.type("\x03")
    assert shell.read("stopped by Ctrl-C").count("error: ") == 1
    shell.type("echo status $?\n")
    shell.read("status 130")
    assert are_gone(*processes)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_job_is_ended_by_a_signal_and_a_continuation(shell, number, status):
    processes = start(shell)
    shell.type("\x1a")
    shell.read("Stopped")
    os.kill(processes[0], number)  # what a stopped program gets when it goes on
    shell.type("fg\n")
    shell.read("error: stopped by ")
    shell.type("echo status $?\n")
    shell.read(f"status {status}")
    assert are_gone(*processes)


def test_kill_of_a_stopped_job_ends_both(shell):
    processes = start(shell)
    shell.type("\x1a")
    shell.read("Stopped")
    shell.type("kill %1\n")
    shell.read("error: stopped by SIGTERM")
    wait_for(lambda: are_gone(*processes))


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_killed_parent_leaves_no_orphan(shell, is_stopped):
    processes = start(shell)
    if is_stopped:
        shell.type("\x1a")
        shell.read("Stopped")
    os.kill(processes[0], signal.SIGKILL)
    wait_for(lambda: are_gone(*processes))


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_closed_terminal_ends_both(shell, is_stopped):
    processes = start(shell)
    if is_stopped:
        shell.type("\x1a")
        shell.read("Stopped")
    shell.close()
    wait_for(lambda: are_gone(*processes))


def test_a_terminal_that_holds_up_the_background_does_not_hold_up_the_child(shell):
    shell.type("stty tostop\n")
    start(shell)
    shell.read("at work")


def test_a_program_in_the_background_is_stopped_and_continued_by_its_id(shell):
    parent, child = start(shell, "&")
    os.kill(parent, signal.SIGTSTP)
    wait_for(lambda: are_stopped(parent, child))
    os.kill(parent, signal.SIGCONT)
    shell.read("at work")
    os.kill(child, signal.SIGSTOP)  # the parent is seen to do nothing either
    wait_for(lambda: are_stopped(parent, child))
    os.kill(parent, signal.SIGCONT)
    shell.read("at work")
    os.kill(parent, signal.SIGTERM)
    shell.read("error: stopped by SIGTERM")
    wait_for(lambda: are_gone(parent, child))


def test_without_a_shell_that_could_continue_it_a_program_ignores_ctrl_z():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert read_line(process.stdout).startswith("child")
        process.send_signal(signal.SIGTSTP)
        for _ in range(5):
            assert read_line(process.stdout) == "at work\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143


PUBLISHING = """
import os, sys, time
from pathlib import Path
from irv2.system.child import go_on_in_child, tell_parent
from irv2.system.stop import end_at_once

end_at_once()
go_on_in_child("the program")
holder, place, is_published = Path("holder"), Path("place"), sys.argv[1] == "True"
folder = holder / "folder"
folder.mkdir(parents=True)
tell_parent(holder, folder, place)
if is_published:
    folder.rename(place)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, 1), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_what_was_published_before_the_end_is_told_of(tmp_path, is_published, number, status):
    if not is_published:
        (tmp_path / "place").mkdir()  # what the program would have replaced
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHING, str(is_published)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        child = int(read_line(process.stdout))
        os.kill(child, number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == status
    assert stderr.count("error: ") == 1
    line = f"{tmp_path}/place: was published before that, and is whole\n"
    assert stderr.endswith(line) == is_published
    assert (tmp_path / "place").is_dir()
    if number == signal.SIGKILL:  # otherwise the program does so itself
        assert not (tmp_path / "holder").exists()
