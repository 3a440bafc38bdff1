"""The program of a front end: `python -P -m irv2.serve.front_ends FD PARENT` (supervisor.py)."""

import sys

from irv2.__main__ import leave_out_working_folder, open_closed_streams


def main() -> None:
    """Run a front end; nothing in the user's working folder is imported."""
    leave_out_working_folder()
    open_closed_streams()
    from irv2.serve.front_ends.process import run

    run(*map(int, sys.argv[1:]))


if __name__ == "__main__":
    main()
