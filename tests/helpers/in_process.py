"""The programs in this process, where all that they import has been imported by now.

What they log goes to pytest's handlers, not to their stderr. Where signals, limits or what a start
imports matter, a test starts a process of its own.
"""

import subprocess

from click.testing import CliRunner

from irv2.cli.main import main


def irv2(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`irv2` with these arguments: its exit status, stdout and stderr."""
    command = [*map(str, arguments)]
    done = CliRunner().invoke(main, command, prog_name="irv2", catch_exceptions=False)
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)
