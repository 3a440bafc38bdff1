"""The command `irv2` and its programs, listed in the order of the pipeline.

The table is static, so that `irv2 --help` imports no program; a program is
imported when it is called.
"""

import importlib
import sys
from typing import Any, NamedTuple, NoReturn

import click

from irv2 import __version__
from irv2.errors import EngineError
from irv2.options import ProgramGroup


class Entry(NamedTuple):
    """Where a program lives, what it does, and the extra whose packages it needs."""

    target: str
    summary: str
    extra: str = ""


PROGRAMS = {
    "data": Entry("irv2.data_cli:main", "Make data folders.", "train"),
    "train": Entry("train.cli:main", "Train a network; leaves a checkpoint.", "train"),
    "plot": Entry("train.plot_cli:main", "Draw training curves.", "train"),
    "eval": Entry("irv2.eval_cli:main", "Measure the errors of a checkpoint or a bundle.", "train"),
    "export": Entry("convert.cli:export", "Convert and verify a checkpoint.", "convert"),
    "verify": Entry("convert.cli:verify", "Judge a bundle again, on this machine.", "convert"),
    "inspect": Entry("convert.cli:inspect", "Show a bundle and check its hashes."),
    "serve": Entry("serve.cli:main", "Serve a bundle over gRPC."),
    "classify": Entry("irv2.classify_cli:main", "Classify image files."),
}


class _Programs(ProgramGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(PROGRAMS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(cmd_name) if cmd_name in PROGRAMS else None

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's signature)
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:  # imported when needed, not with the program
            if ctx.invoked_subcommand is None:
                raise
            raise missing_extra(ctx.invoked_subcommand, error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Programs, in the order of the pipeline"):
            formatter.write_dl([(name, entry.summary) for name, entry in PROGRAMS.items()])


@click.group(cls=_Programs)
@click.version_option(__version__, prog_name="irv2")
def main() -> None:
    """Inception-ResNet-v2: train, export, verify, serve, classify."""


def train() -> NoReturn:
    """`irv2-train`."""
    _run("train")


def export() -> NoReturn:
    """`irv2-export`."""
    _run("export")


def serve() -> NoReturn:
    """`irv2-serve`."""
    _run("serve")


def classify() -> NoReturn:
    """`irv2-classify`."""
    _run("classify")


def _run(name: str) -> NoReturn:
    # Through the group, so that both spellings share one way of failing.
    main.main([name, *sys.argv[1:]], prog_name="irv2")


def _load(name: str) -> click.Command:
    module_name, attribute = PROGRAMS[name].target.split(":")
    try:
        command = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise missing_extra(name, error) from error
    assert isinstance(command, click.Command)
    return command


def missing_extra(name: str, error: ModuleNotFoundError) -> EngineError:
    """What to say when a program's packages are not installed."""
    extra = PROGRAMS[name].extra
    way_out = f'pip install "irv2[{extra}]"' if extra else "reinstall irv2"
    package = (error.name or "").partition(".")[0]
    return EngineError(f"irv2 {name}", f"package {package} is not installed", way_out=way_out)
