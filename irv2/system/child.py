"""A program in a child of its own, where a library may end the process when memory runs out.

What ends by a signal can neither say so nor remove what it made: its parent does both, and says
what was published all the same. Whoever started the program knows the parent alone, which passes on
every signal and stops with the child.
"""

import ctypes
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from irv2.system.cgroups import num_killed, why_killed
from irv2.system.memory import limit_of_process
from irv2.system.stop import LINES

_PR_SET_PDEATHSIG = 1
_WATCHED = {*LINES, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD}
_parent: int | None = None  # where the child writes what it makes


def go_on_in_child(name: str) -> None:
    """Return in a forked child; this process waits for it, then exits with its status.

    If the child is lost, say so, remove what `tell_parent` named, and exit with 1. If it fails or
    is stopped once that is published, say so too. Call this before there are threads.
    """
    global _parent
    told, _parent = os.pipe()
    killed = num_killed()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may have had it ignored
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    me, child = os.getpid(), os.fork()
    if child == 0:
        os.close(told)
        end_with(me)
        _leave_group()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    os.close(_parent)
    status = _wait_for(child)
    exit_code = os.waitstatus_to_exitcode(status)
    holder, place = _made(told)
    if exit_code < 0:
        if holder:
            shutil.rmtree(holder, ignore_errors=True)
        exit_code = _explain(name, -exit_code, killed)
    if exit_code and place:
        os.write(2, place + b": was published before that, and is whole\n")
    os._exit(exit_code)


def tell_parent(holder: Path, folder: Path, place: Path) -> None:
    """Tell of `folder`, which is made within `holder` and published by renaming it to `place`.

    The parent removes `holder` if this process is ended by a signal before it can do so itself.
    """
    if _parent is not None:
        fields = str(folder.stat().st_ino), str(holder.absolute()), str(place.absolute())
        os.write(_parent, b"\0".join(map(os.fsencode, fields)))


def _made(told: int) -> tuple[bytes | None, bytes | None]:
    """Return the holder that the child told of, and the place if its folder was published there."""
    os.set_blocking(told, False)
    fields = b""
    with suppress(BlockingIOError):  # it told of none, and a child of it lives on
        fields = os.read(told, 65536)
    if not fields:
        return None, None
    inode, holder, place = fields.split(b"\0")
    with suppress(OSError):
        if os.stat(place).st_ino == int(inode):  # a renamed folder keeps it  # noqa: PTH116
            return holder, place
    return holder, None


def end_with(parent: int) -> None:
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


def _wait_for(child: int) -> int:
    """Pass signals on to the child, and stop with it, until it has ended; return its status.

    They stay blocked: one that came just before a waitpid would not interrupt it.
    """
    watched = {number for number in _WATCHED if signal.getsignal(number) != signal.SIG_IGN}
    while True:
        number = signal.sigwait(watched)
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid and not os.WIFSTOPPED(status):
            return status
        if pid:
            _stop()
            os.kill(child, signal.SIGCONT)


def _stop() -> None:
    """Stop this process as Ctrl-Z does; return when it is continued, or if nobody could do so."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.raise_signal(signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})


def _explain(name: str, number: int, killed: int) -> int:
    """Write the line of a process that a signal ended; return the exit status.

    `killed` is what `num_killed` was before.
    """
    if number in LINES:
        line, exit_code = LINES[signal.Signals(number)], 128 + number
    else:
        how = why_killed(killed) or "as systems and libraries do when it runs out"
        limit = limit_of_process()
        got = f"{name} was ended by {signal.Signals(number).name}, {how}"
        got += f" ({limit})" if limit else ""
        way_out = (
            "what was not published is removed; free some, raise the limit, or lower --max-batch"
        )
        line, exit_code = f"memory: {got}; expected room for the whole program; {way_out}", 1
    os.write(2, f"error: {line}\n".encode())
    return exit_code
