"""The start of every program: `python -m irv2` and the console scripts.

Nothing in the user's working folder is ever imported: `python -m`, torchrun and `PYTHONPATH=.` put
it ahead of the libraries, so the user's own train.py or click.py would shadow one of them.
So little is imported before that, and before signals have their meaning.
"""

import os
import sys
from typing import NoReturn


def run(*program: str) -> NoReturn:
    """Run `program`, or the program named on the command line."""
    arguments = [*program, *sys.argv[1:]]
    if arguments[:1] == ["doctor"]:
        sys.dont_write_bytecode = True  # it writes nothing
    leave_out_working_folder()
    open_closed_streams()
    if "_IRV2_COMPLETE" in os.environ:  # a shell asks what may follow
        from irv2.cli.completion import answer

        answer(*program)
    from irv2.system.stop import end_at_once

    end_at_once()
    if arguments[:1] == ["export"]:
        from irv2.system.child import go_on_in_child

        go_on_in_child("irv2 export")
    from irv2.cli.main import main

    main.main(arguments, prog_name="irv2")


def train() -> NoReturn:
    """Run `irv2-train`."""
    run("train")


def export() -> NoReturn:
    """Run `irv2-export`."""
    run("export")


def serve() -> NoReturn:
    """Run `irv2-serve`."""
    run("serve")


def classify() -> NoReturn:
    """Run `irv2-classify`."""
    run("classify")


def leave_out_working_folder() -> None:
    """Take the working folder off the import path, unless this package itself lies in it."""
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:  # it was removed, so nothing can be imported from it
        return
    if here != os.path.realpath(f"{__file__}/../.."):
        sys.path[:] = [path for path in sys.path if os.path.realpath(path) != here]


def open_closed_streams() -> None:
    """Open the null device for each standard stream that the caller closed, as `2>&-` does.

    Python has None in its place, and the next file to be opened would get its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 (for good)
            setattr(sys, name, null)


if __name__ == "__main__":
    run()
