"""A program in a child of its own, where a library may end the process when memory runs out.

What ends by a signal can neither say so nor remove what it made: its parent does both. Whoever
started the program knows the parent alone, which passes on every signal and stops with the child.
"""

import ctypes
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType

from irv2.system.stop import LINES

_PR_SET_PDEATHSIG = 1
_FORWARDED = (*LINES, signal.SIGTSTP, signal.SIGCONT)
_parent: int | None = None  # where the child writes what is to be removed


def go_on_in_child(name: str) -> None:
    """Return in a forked child; this process waits for it, then exits with its status.

    If the child is lost, say so, remove what `remove_if_lost` named, and exit with 1. Call this
    before there are threads.
    """
    global _parent
    to_remove, _parent = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    me, child = os.getpid(), os.fork()
    if child == 0:
        os.close(to_remove)
        _end_with(me)
        _leave_group()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    os.close(_parent)
    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while os.WIFSTOPPED(status := os.waitpid(child, os.WUNTRACED)[1]):
        _stop()
        os.kill(child, signal.SIGCONT)
    exit_code = os.waitstatus_to_exitcode(status)
    if exit_code < 0:
        os.set_blocking(to_remove, False)
        with suppress(BlockingIOError):  # nothing was named, and a child of the child lives on
            for folder in os.read(to_remove, 65536).split(b"\0")[:-1]:
                shutil.rmtree(folder, ignore_errors=True)
        exit_code = _explain(name, -exit_code)
    os._exit(exit_code)


def remove_if_lost(folder: Path) -> None:
    """Have `folder` removed if this process is ended by a signal before it can do so itself."""
    if _parent is not None:
        os.write(_parent, os.fsencode(folder.absolute()) + b"\0")


def _end_with(parent: int) -> None:
    """Have this process killed when its parent is, so that none works on unseen."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _leave_group() -> None:
    """Let signals of the terminal, such as Ctrl-C, come once, from the parent.

    Then the terminal takes this process for one in the background, whose output it may hold up
    (`stty tostop`); so that is ignored.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def _stop() -> None:
    """Stop this process as Ctrl-Z does; return when it is continued, or if nobody could do so."""
    handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)


def _explain(name: str, number: int) -> int:
    """Write the line of a process that a signal ended; return the exit status."""
    if number in LINES:
        line, exit_code = LINES[signal.Signals(number)], 128 + number
    else:
        how = (
            f"ended by {signal.Signals(number).name}, as systems and libraries do when it runs out"
        )
        way_out = "what was not published yet is removed; free some, or raise the limit"
        line, exit_code = f"memory: {name} was {how}; {way_out}", 1
    os.write(2, f"error: {line}\n".encode())
    return exit_code
