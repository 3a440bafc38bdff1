"""What a shell completes: its script, and the answers to its questions while someone types."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

import click
from click.shell_completion import get_completion_class, shell_complete

from irv2.cli.main import main
from irv2.errors import Irv2Error

SHELLS = ("bash", "zsh", "fish")
SCRIPTS = ("train", "export", "serve", "classify")  # those with a console script of their own
VARIABLE = "_IRV2_COMPLETE"  # the question, in the environment; irv2/__main__.py looks for it


def script(shell: str) -> str:
    """Return the script that teaches `shell` to complete irv2, irv2-train and so on."""
    kind = get_completion_class(shell)
    assert kind is not None
    names = ("irv2", *(f"irv2-{name}" for name in SCRIPTS))
    return "".join(kind(main, {}, name, VARIABLE).source() for name in names)


def answer(program: str = "") -> NoReturn:
    """Print what may follow the words in the environment, of `irv2` or of one program's script."""
    command = main.get_command(click.Context(main), program) if program else main
    assert command is not None
    with suppress(Irv2Error):  # an extra is missing: nothing is offered, and the line stays clean
        sys.exit(shell_complete(command, {}, "irv2", VARIABLE, os.environ[VARIABLE]))
    sys.exit(1)
