"""Programs with a terminal for stderr, which draw their progress there."""

import os
import pty
import subprocess
import termios


def run_on_terminal(command: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout, and all that was drawn, each step of a progress bar included."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    environment = {**os.environ, "TQDM_MININTERVAL": "0"}  # draw every step
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
    ) as process:
        os.close(theirs)
        drawn = b"".join(iter(lambda: _read(ours), b"")).decode()
        stdout = process.stdout.read()
    os.close(ours)
    return process.returncode, stdout, drawn


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what Linux says when the other end was closed
        return b""
